"""What a logger is told, and how little it can do to the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metalearn.loggers import Line, Logger

log = logging.getLogger(__name__)


class LoggerGuard:
    """Passes the lines of metrics.jsonl on to a logger, which is left alone for good, with a warning, after
    its first failure.

    One that never returns is ended like any step that hangs, see `metalearn.run.signals`.
    """

    def __init__(self, logger: Logger, run_dir: Path) -> None:
        self.logger: Logger | None = logger
        self.run_dir = run_dir

    def open(self) -> None:
        """Begin with the lines that stand in metrics.jsonl."""
        self._attempt(
            "to open", lambda logger: logger.open(self.run_dir, read_lines(self.run_dir / "metrics.jsonl"))
        )

    def write(self, line: dict[str, Any]) -> None:
        self._attempt(f"at step {line['step']}", lambda logger: logger.write(as_line(line)))

    def reopen(self) -> None:
        """Lines were taken back."""
        self.close()
        self.open()

    def close(self) -> None:
        self._attempt("to close", lambda logger: logger.close())

    def _attempt(self, moment: str, call: Callable[[Logger], object]) -> None:
        if self.logger is None:
            return
        try:
            call(self.logger)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the run goes on without it, whatever it was: asyncio's cancellation is no Exception
            kind, self.logger = type(self.logger), None
            log.warning(failure(f"{kind.__module__}.{kind.__qualname__}", moment, error))


def failure(name: str, moment: str, error: BaseException) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"the logger {name} failed {moment} ({reason}); the run goes on without it"


def read_lines(path: Path) -> list[Line]:
    if not path.exists():
        return []
    return [as_line(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def as_line(line: dict[str, Any]) -> Line:
    return Line(
        line["step"],
        line["split"],
        {name: value for name, value in line.items() if name not in ("step", "split")},
    )
