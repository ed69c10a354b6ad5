"""What a check is, and how its outcome becomes one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from metalearn.errors import MetalearnError

Check = tuple[str, Callable[[], str]]  # its name, and what returns a detail, or raises
WIDTH = 8


class FailedError(MetalearnError):
    """A check failed; the message says what was found, what was expected and what to do."""


class SkippedError(Exception):
    """A check could not be made; the message says why."""


def examine(checks: Iterable[Check]) -> list[str]:
    """Make the checks in order, and print one line for each; the names of those that failed."""
    failed = []
    for name, check in checks:
        try:
            state, detail = "ok", check()
        except SkippedError as reason:
            state, detail = "skipped", str(reason)
        except MetalearnError as error:
            state, detail = "FAILED", str(error)
        except OSError as error:
            state, detail = "FAILED", f"{error}; make room or give permission there, then run it again"
        except Exception as error:  # noqa: BLE001 - one check that breaks must not hide what the others find
            state, detail = (
                "FAILED",
                f"{type(error).__name__}: {error}; this is a mistake of metalearn or of a package that it "
                "needs",
            )
        failed += [name] if state == "FAILED" else []
        print(f"{state:{WIDTH}}{name}: {' '.join(detail.split())}", flush=True)
    return failed
