"""Curves in TensorBoard, to be watched with `tensorboard --logdir RUN_DIR`."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from metalearn.errors import ConfigError
from metalearn.loggers import Line, Logger


class TensorBoard(Logger):
    """An event file in RUN_DIR/tensorboard: a scalar `split/metric` for every finite value of a line.
    ConfigError without the package.

    Written line by line in this thread. SummaryWriter's own thread would leave a traceback on the screen when
    a disk is full.
    """

    def __init__(self) -> None:
        try:
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
            from torch.utils.tensorboard.summary import scalar
        except ImportError as error:
            raise ConfigError(
                "logger=tensorboard needs a package that is not installed; install it with: pip install "
                "'metalearn-runner[tensorboard]'"
            ) from error
        self.events, self.make_writer, self.scalar = event_pb2, RecordWriter, scalar

    def open(self, run_dir: Path, lines: list[Line]) -> None:
        # All over again, since no step says what was taken back: a result of the test split bears the step
        # that validation chose. TensorBoard's faster reader knows no session and would go on showing points
        # of older files; one that watches needs it.
        folder = run_dir / "tensorboard"
        older = list(folder.glob("events.out.tfevents.*"))
        folder.mkdir(exist_ok=True)
        host, unique = socket.gethostname(), uuid.uuid4().hex[:8]
        name = f"events.out.tfevents.{time.time():.0f}.{host}.{os.getpid()}.{unique}"
        self.writer = self.make_writer((folder / name).open("wb"))
        self._add(file_version="brain.Event:2")
        self._add(session_log=self.events.SessionLog(status=self.events.SessionLog.START))
        for line in lines:
            self.write(line)
        for path in older:
            path.unlink()

    def write(self, line: Line) -> None:
        for name, value in line.values.items():
            if value is not None:
                self._add(step=line.step, summary=self.scalar(f"{line.split}/{name}", value))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

    def _add(self, **content: Any) -> None:
        self.writer.write(self.events.Event(wall_time=time.time(), **content).SerializeToString())
