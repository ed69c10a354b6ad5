"""What can go wrong for a person, and the exit code that says so. Messages give value, expectation, fix.

MetalearnError    1   the run failed
├ ConfigError     2   usage or configuration; holds every problem that was found
│ └ InUseError        another process holds the run folder
├ DataError       3   data missing or corrupt
└ CheckpointError 4   no valid checkpoint
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class MetalearnError(Exception):
    """A run that failed for a reason that its message explains."""

    exit_code = 1


class ConfigError(MetalearnError):
    """Usage or configuration errors, all of them at once."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class InUseError(ConfigError):
    """Another process holds the lock of a run folder."""


class DataError(MetalearnError):
    """Data that is missing, incomplete or not what it claims to be."""

    exit_code = 3


class CheckpointError(MetalearnError):
    """No checkpoint of a run is valid."""

    exit_code = 4


def raise_if(problems: Iterable[str]) -> None:
    found = list(dict.fromkeys(problems))
    if found:
        raise ConfigError(found)


def raise_all(errors: Sequence[MetalearnError]) -> None:
    """One error with every sentence of these: ConfigError if any of them is one, otherwise DataError."""
    problems = list(
        dict.fromkeys(problem for error in errors for problem in getattr(error, "problems", [str(error)]))
    )
    if any(isinstance(error, ConfigError) for error in errors):
        raise ConfigError(problems)
    if problems:
        raise DataError("\n".join(problems))
