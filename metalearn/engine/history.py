"""What training remembers of its own numbers: every validation, and the means between two log lines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class ValidationHistory:
    """entries: [step, value of the monitored metric] of every validation, in order; values that are not
    finite are None.
    """

    higher_is_better: bool
    entries: list[list[float | None]] = field(default_factory=list)

    def enter(self, step: int, value: float) -> None:
        self.entries.append([step, value if math.isfinite(value) else None])

    def ranked(self, count: int) -> list[int]:
        """Steps of the `count` best values, best first (at least one if there is any); the earlier of equals
        comes first.
        """
        sign = -1 if self.higher_is_better else 1
        scored = sorted(
            (sign * value, step) for step, value in self.entries if value is not None and step is not None
        )
        return [int(step) for _, step in scored[: max(count, 1)]]

    def best(self) -> int | None:
        return next(iter(self.ranked(1)), None)

    def since_best(self) -> int:
        """Validations after the best one."""
        best = self.best()
        return (
            len(self.entries)
            if best is None
            else sum(1 for step, _ in self.entries if step is not None and step > best)
        )

    def forget(self, step: int) -> None:
        """Leave a validation out, because its checkpoint is lost."""
        self.entries = [entry for entry in self.entries if entry[0] != step]


LEFT_OUT = "left_out"  # steps of the running means whose update was


@dataclass
class RunningMeans:
    """Sums of the metrics since the last log line, kept on the device."""

    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: dict[str, Tensor], bad: Tensor | None = None) -> None:
        """bad: whether the update was left out, and its metrics with it; None where nothing ever is."""
        self.count += 1
        if bad is not None:
            metrics = {
                **{name: value.masked_fill(bad, 0) for name, value in metrics.items()},
                LEFT_OUT: bad.long(),
            }
        sums = {
            name: self.sums[name] + value if name in self.sums else value for name, value in metrics.items()
        }
        self.sums = sums | {name: value for name, value in self.sums.items() if name not in sums}

    def take(self) -> dict[str, float]:
        """Means over the steps since the last call, after which it starts anew, and how many of its steps
        they leave out; NaN if all.
        """
        sums = {name: value.item() for name, value in self.sums.items()}
        count = self.count - sums.get(LEFT_OUT, 0)
        means = {
            name: value if name == LEFT_OUT else value / count if count else math.nan
            for name, value in sums.items()
        }
        self.count, self.sums = 0, {}
        return means
