"""Where the lines of a run's metrics.jsonl go besides. `Logger` is what one of your own derives from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """One line of metrics.jsonl. values: numbers, None for one that is not finite; names that start with
    `time_` are seconds.
    """

    step: int
    split: str
    values: dict[str, float | None]


class Logger:
    """Is told every line of metrics.jsonl, and keeps none of them: this is `logger=none`.

    A subclass takes the keys of its YAML. Its constructor only looks whether it can work here, and raises
    ValueError with the way out
    if not: that is refused before training. Whatever else is raised, there or later, costs a warning and the
    logger, but not the run. It must leave the random generators of torch alone, whose state a run saves.
    """

    def open(self, run_dir: Path, lines: list[Line]) -> None:
        """Begin, or begin anew after `close`: a run that is resumed, or rolled back, goes back to an earlier
        line.

        lines: those that stand now. What a logger was told before and is not among them was taken back.
        """

    def write(self, line: Line) -> None:
        """A line that was just written."""

    def close(self) -> None:
        """The run ends here, in whatever way."""
