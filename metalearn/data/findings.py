"""What an audit says: one sentence per check, how bad it is, and the pictures that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from metalearn.core import Split

Severity = Literal["ok", "note", "warning", "error"]
NAMED = 3  # that a sentence names before it counts; the page and --json name all that are kept
KEPT = 1000  # names that a finding keeps
SHOWN = 12  # exhibits of a finding on the page


class Exhibit(NamedTuple):
    """Pictures side by side. caption: what they have in common. pictures: name and pixels, uint8 (h, w) or
    (h, w, 3).
    """

    caption: str
    pictures: Sequence[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Finding:
    """check: what was looked at. names: whom it is about, at most KEPT of them. exhibits: for the page."""

    check: str
    severity: Severity
    text: str
    names: Sequence[str] = ()
    exhibits: Sequence[Exhibit] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "severity": self.severity,
            "finding": self.text,
            "names": list(self.names[:KEPT]),
        }


@dataclass(frozen=True)
class Audit:
    """sizes: examples per class of each split, empty where there are no classes. method: how duplicates were
    found.
    """

    data: str
    findings: Sequence[Finding]
    sizes: Mapping[Split, Sequence[int]]
    method: str = ""

    @property
    def exit_code(self) -> int:
        """3: splits share content, or data cannot be read or are not what was published."""
        return 3 if any(finding.severity == "error" for finding in self.findings) else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "exit_code": self.exit_code,
            "findings": [finding.to_json() for finding in self.findings],
            "sizes": {split: list(sizes) for split, sizes in self.sizes.items()},
            "method": self.method,
        }


def listed(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(names) - NAMED
    return "; ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 picture`, `1,200 pictures`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def percent(share: float) -> str:
    """A share that is not 0 never reads as 0, and one below 1 never as 100%."""
    if share in (0, 1):
        return f"{share:.0%}"
    return "less than 0.01%" if share < 1e-4 else f"{min(share, 0.9999):.2%}"
