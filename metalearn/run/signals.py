"""SIGTERM and SIGINT ask a run to stop: the handler only sets a flag, and the run looks at it between steps.

A thread watches over that, since the main one may wait in a kernel, at a disk or for another rank, where
Python calls no handler: a second signal, or a run that is still there some time after the first, ends the
process at once. Nothing is lost by that but the steps since the newest checkpoint. Only a C function that
never lets another thread run escapes it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from metalearn.errors import MetalearnError

CAUGHT = (signal.SIGTERM, signal.SIGINT)
TIMEOUT = 120.0  # seconds, until the configuration is known
LAST_WORD = 5.0  # seconds for writing down what happened, on a disk that may be what hangs
END = b"\0"  # no signal has this number


class PreemptedError(MetalearnError):
    """The run was asked to stop and can be resumed. Exit code 143 (SIGTERM, or a scheduler's warning of it)
    or 130 (SIGINT).
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = exit_code(number)


class StopSignals:
    """Context in which the first signal is remembered, and nothing that hangs outlives it for long.

    warnings: signals that ask to stop but, however many, do not count as the second one that ends the process
    at once.
    timeout: seconds from the first signal to the end of the process.
    last_word: told the exit code and the reason before the process is ended, in a thread of its own.
    Outside the main thread Python allows no handlers; signals then keep their usual meaning.
    """

    def __init__(self, *warnings: signal.Signals) -> None:
        self.caught = (*CAUGHT, *warnings)
        self.received: int | None = None
        self.timeout = TIMEOUT
        self.last_word: Callable[[int, str], object] = say_nothing
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
            self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._previous = {number: signal.signal(number, self._remember) for number in self.caught}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_writer, warn_on_full_buffer=False)
        os.write(self._writer, END)
        self._watcher.join()
        os.close(self._reader)
        os.close(self._writer)

    def check(self) -> None:
        """Raise PreemptedError if a signal has come."""
        if self.received is not None:
            raise PreemptedError(self.received)

    def _remember(self, number: int, frame: FrameType | None = None) -> None:
        self.received = self.received or number

    def _watch(self) -> None:
        """Read the numbers of the signals as they come, whatever the main thread does."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        first, deadline, count = 0, 0.0, 0
        while True:
            left = max(0.0, deadline - time.monotonic()) if first else None
            if not poll.poll(None if left is None else 1000 * left):
                self._leave(
                    first, f"it had not stopped {self.timeout:g} s after {signal.Signals(first).name}"
                )
            for number in os.read(self._reader, 64):
                if number == END[0]:
                    return
                if number in self.caught and not first:
                    first, deadline = number, time.monotonic() + self.timeout
                    # the main thread may not come to it for long, and others ask what
                    # was received
                    self._remember(number)
                count += number in CAUGHT
                if number in CAUGHT and count > 1:
                    self._leave(number, f"a second signal came ({signal.Signals(number).name})")

    def _leave(self, number: int, reason: str) -> None:
        """End the process without the clean-up that may be what hangs."""
        word = threading.Thread(target=self.last_word, args=(exit_code(number), reason), daemon=True)
        word.start()
        word.join(LAST_WORD)
        os._exit(exit_code(number))


def exit_code(number: int) -> int:
    return 128 + (number if number in CAUGHT else signal.SIGTERM)


def say_nothing(code: int, reason: str) -> None:
    """The last word of a process that has nothing to write down."""
