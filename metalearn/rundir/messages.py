"""What the program says while it works, and who hears it.

Every module logs to `logging.getLogger(__name__)`. The command line listens; a run listens in its place while
it lasts; used from Python nobody does, and the ordinary rules of `logging` hold.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from metalearn.errors import MetalearnError

LOGGER = logging.getLogger("metalearn")
PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: "}


class Listener(logging.Handler):
    """Passes each record on as the text that a person reads."""

    def __init__(self, write: Callable[[str], object], level: int) -> None:
        super().__init__(level)
        self.write = write

    def emit(self, record: logging.LogRecord) -> None:
        self.write(PREFIXES.get(record.levelno, "") + record.getMessage())


@contextmanager
def listening(write: Callable[[str], object], *, level: int = logging.INFO) -> Iterator[None]:
    """Hear every message of this package from `level` on, in place of whoever heard them before."""
    before = LOGGER.handlers, LOGGER.level, LOGGER.propagate
    LOGGER.handlers, LOGGER.propagate = [Listener(write, level)], False
    LOGGER.setLevel(level)
    try:
        yield
    finally:
        LOGGER.handlers, LOGGER.propagate = before[0], before[2]
        LOGGER.setLevel(before[1])


@contextmanager
def overhearing() -> Iterator[list[str]]:
    """The messages within, which are heard as usual too."""
    heard: list[str] = []
    before, level = LOGGER.handlers, LOGGER.level
    LOGGER.handlers = [*before, Listener(heard.append, logging.INFO)]
    LOGGER.setLevel(logging.INFO)
    try:
        yield heard
    finally:
        LOGGER.handlers = before
        LOGGER.setLevel(level)


@contextmanager
def unheard() -> Iterator[None]:
    """Nobody hears what is said within, as of a trial whose outcome is told in other words."""
    with listening(lambda text: None):
        yield


def echo(text: str, *, beside: Any = None) -> None:
    """Print a line, above a progress bar if there is one. A reader who left (`| head`) or a full disk is no
    reason to stop.
    """
    try:
        if beside is None:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        else:
            beside.write(text)
    except (
        OSError,
        MetalearnError,
    ):  # the command line has its own word for a full disk behind standard output
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
