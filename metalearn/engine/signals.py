"""SIGTERM and SIGINT ask a run to stop: the handler only sets a flag, and the run looks at it between steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from metalearn.errors import MetalearnError

CAUGHT = (signal.SIGTERM, signal.SIGINT)


class PreemptedError(MetalearnError):
    """The run was asked to stop and can be resumed. Exit code 143 (SIGTERM) or 130 (SIGINT)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class StopSignals:
    """Context in which the first signal is remembered and a second one ends the process at once.

    Outside the main thread Python allows no handlers; signals then keep their usual meaning.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._remember) for number in CAUGHT}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise PreemptedError if a signal has come."""
        if self.received is not None:
            raise PreemptedError(self.received)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            # The person insists: leave without the clean-up that may be what hangs.
            os._exit(128 + number)
        self.received = number
