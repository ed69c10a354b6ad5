"""How a sweep ends early: a signal to its process is a word to its jobs, wherever they run, and never the loss of one.

A job in this process hears signals itself. Jobs in processes that a launcher started also look for the sweep's mark,
since a terminal sends a signal to all of them, but `kill` and a scheduler may send it to one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from metalearn.engine.signals import CAUGHT, StopSignals

WATCH_EVERY = 0.2  # seconds


class SweepStopped(BaseException):
    """The job in this process was interrupted and saved; those after it do not start. Hydra would record an Exception and go on."""


class Stops:
    """Context in which the first SIGINT or SIGTERM keeps further jobs from starting; a second one ends the process at once.

    folder: of the sweep, which exists. mark: a file in it from then on, for jobs in other processes. code: then 130 or 143.
    """

    def __init__(self, folder: Path) -> None:
        self.mark = folder / f".stop-{os.getpid()}"
        self.code = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        self.mark.unlink(missing_ok=True)  # of an earlier process of this number
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._stop) for number in CAUGHT}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self.mark.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.mark.parent.rmdir()  # it is empty if jobs only rehearsed

    def stop(self, code: int) -> None:
        """No further job starts."""
        self.code = self.code or code
        with contextlib.suppress(OSError):
            self.mark.write_text(str(self.code - 128), encoding="utf-8")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.code:
            os._exit(128 + number)
        self.stop(128 + number)


@contextlib.contextmanager
def heeding(mark: Path, parent: int | None) -> Iterator[StopSignals]:
    """A job runs in here: the sweep's mark stops it as a signal would, and no signal is lost before the job listens itself.

    parent: the sweep's process, of which this one is a child, and whose end stops the job too. None: this is no child of it.
    """
    done = threading.Event()

    def watch() -> None:
        noticed, told = False, [around]
        while not done.wait(WATCH_EVERY):
            number = around.received or asked(mark, parent)
            listener = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            # Once, only at the second look, and with the same number: a terminal tells every process itself, and twice means at once.
            if noticed and number and isinstance(listener, StopSignals) and listener not in told and listener.received is None:
                told.append(listener)
                os.kill(os.getpid(), number)
            noticed = bool(number)

    if parent is not None:
        outlive_signals(mark)
    with StopSignals() as around:
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield around
        finally:
            done.set()
            watcher.join()


def outlive_signals(mark: Path) -> None:
    """From now on this process does not die of a signal between two jobs, which would take those in other processes along.

    Unless the sweep is at its end, when its process tells the others to go.
    """

    def stay(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            time.sleep(2 * WATCH_EVERY)  # a scheduler tells all of them at once; the mark comes a moment later
            if not mark.exists():
                os._exit(128 + number)

    for number in CAUGHT:
        signal.signal(number, stay)


def asked(mark: Path, parent: int | None) -> int | None:
    """The signal that a sweep's process has received, or SIGTERM if that process is gone; None as long as all is well."""
    if parent is not None and os.getppid() != parent:
        return signal.SIGTERM
    try:
        text = mark.read_text(encoding="utf-8")
    except OSError:
        return None
    return int(text) if text.isdecimal() else signal.SIGTERM  # a disk may be full for the number
