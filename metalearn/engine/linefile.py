"""Files that grow by lines while a run goes on, and outlive a disk that is full for a while."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


class LineFile:
    """What the disk refuses is kept in memory and written before what follows; a warning is said when a row of refusals begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._pending = b""
        self._refused = False

    def write(self, text: str) -> None:
        """Append whole lines. Never raises for the disk's sake."""
        self._pending += text.encode("utf-8", "backslashreplace")
        try:
            self._flush()
            self._refused = False
        except OSError as error:
            if not self._refused:
                self._refused = True  # first, as the warning may be a line for this file
                log.warning(f"{self.path} cannot be written: {error.strerror}; its lines are kept in memory until it can")

    def sync(self) -> int:
        """Bytes that are safely on the disk, which is everything that was written. OSError if the disk refuses."""
        descriptor = self._flush()
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size

    def rewind(self, offset: int) -> None:
        """Forget what was written after so many bytes."""
        self._pending = b""
        os.ftruncate(self._open(), offset)

    def close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._flush()
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return self._descriptor

    def _flush(self) -> int:
        descriptor = self._open()
        while self._pending:
            self._pending = self._pending[os.write(descriptor, self._pending) :]
        return descriptor
