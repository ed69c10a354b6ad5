"""How a sweep ends early: a signal to its process is a word to its jobs, wherever they run, and never the
loss of one.

A job in this process hears signals itself. Jobs in processes that a launcher started also look for the
sweep's mark, since a terminal sends a signal to all of them, but `kill` and a scheduler may send it to one.
The mark holds the number of the first signal. If SLURM's warning was the first, whoever got it, the sweep's
process requeues the SLURM job of all of them.
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

from metalearn.run import slurm
from metalearn.run.signals import CAUGHT, StopSignals, exit_code

WATCH_EVERY = 0.2  # seconds


class SweepStopped(BaseException):
    """The job in this process was interrupted by this signal and saved; those after it do not start. Hydra
    would record an Exception.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stops:
    """Context in which the first SIGINT, SIGTERM or warning of SLURM keeps further jobs from starting.

    A second SIGINT or SIGTERM ends the process at once; a warning is neither the first nor the second of
    these.
    folder: of the sweep, which exists. mark: a file in it once there is a signal, for jobs in other
    processes.
    """

    def __init__(self, folder: Path) -> None:
        self.mark = folder / f".stop-{os.getpid()}"
        self._number = 0
        self._urged = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        remove_mark(self.mark)  # of an earlier process of this number
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._stop) for number in (*CAUGHT, *slurm.warnings())
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        remove_mark(self.mark)
        with contextlib.suppress(OSError):
            self.mark.parent.rmdir()  # it is empty if jobs only rehearsed

    @property
    def number(self) -> int:
        """The first signal, here or to a job in another process; 0 if there was none."""
        return self._number or marked(self.mark)

    @property
    def code(self) -> int:
        """130 or 143 once the sweep is to end, 0 until then."""
        return exit_code(self.number) if self.number else 0

    def stop(self, number: int) -> None:
        """No further job starts."""
        self._number = self.number or number
        leave_mark(self.mark, self._number)
        self._urged = self._urged or number in CAUGHT

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._urged and number in CAUGHT:
            os._exit(128 + number)
        self.stop(number)


def leave_mark(mark: Path, number: int) -> None:
    """Let the sweep's process and all of its jobs know of a signal, unless there was one before."""
    if not marked(mark):
        with contextlib.suppress(OSError):
            mark.with_name(f"{mark.name}-{number}").touch()


def marked(mark: Path) -> int:
    """The signal that a mark names, in its file's name, as a disk may be full for a content; 0 if there is no
    mark.
    """
    numbers = (path.name.rpartition("-")[2] for path in mark.parent.glob(f"{mark.name}-*"))
    return min((int(number) for number in numbers if number.isdecimal()), default=0)


def remove_mark(mark: Path) -> None:
    for path in mark.parent.glob(f"{mark.name}-*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def heeding(mark: Path, parent: int | None) -> Iterator[StopSignals]:
    """A job runs in here: the sweep's mark stops it as a signal would, and no signal is lost before the job
    listens itself.

    parent: the sweep's process, of which this one is a child, and whose end stops the job too. None: this is
    no child of it.
    """
    done = threading.Event()

    def watch() -> None:
        noticed, told = False, [around]
        while not done.wait(WATCH_EVERY):
            number = around.received or asked(mark, parent)
            listener = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            # Once, only at the second look, and with the same number: a terminal tells every process itself,
            # and twice means at once.
            if (
                noticed
                and number
                and isinstance(listener, StopSignals)
                and listener not in told
                and listener.received is None
            ):
                told.append(listener)
                os.kill(os.getpid(), number)
            noticed = bool(number)

    if parent is not None:
        outlive_signals(mark)
    with StopSignals(*slurm.warnings()) as around:
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield around
        finally:
            done.set()
            watcher.join()


def outlive_signals(mark: Path) -> None:
    """From now on this process does not die of a signal between two jobs, which would take those in other
    processes along.

    Unless the sweep is at its end, when its process tells the others to go.
    """

    def stay(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            # a scheduler tells all of them at once; the mark comes a moment later
            time.sleep(2 * WATCH_EVERY)
            if not marked(mark):
                os._exit(128 + number)

    for number in (*CAUGHT, *slurm.warnings()):
        signal.signal(number, stay)


def asked(mark: Path, parent: int | None) -> int:
    """SIGINT or SIGTERM as the sweep's mark asks for it, or SIGTERM if the sweep's process is gone; 0 as long
    as all is well.

    A warning of SLURM's is SIGTERM here: it is the sweep's, whose job this one may not be.
    """
    if parent is not None and os.getppid() != parent:
        return signal.SIGTERM
    number = marked(mark)
    return number if number in (0, *CAUGHT) else signal.SIGTERM
