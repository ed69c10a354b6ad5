"""Curves in TensorBoard, to be watched with `tensorboard --logdir RUN_DIR`."""

from __future__ import annotations

from pathlib import Path

from metalearn.errors import ConfigError
from metalearn.loggers import Line, Logger


class TensorBoard(Logger):
    """Event files in RUN_DIR/tensorboard: a scalar `split/metric` for every finite value of a line. ConfigError without the package."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "logger=tensorboard needs a package that is not installed; install it with: pip install 'metalearn-runner[tensorboard]'"
            ) from error
        self.make_writer = SummaryWriter

    def open(self, run_dir: Path, lines: list[Line]) -> None:
        # All over again, since no step says what was taken back: a result of the test split bears the step that validation chose.
        # TensorBoard's faster reader knows no purge_step and would go on showing that of older files; one that watches needs it.
        folder = run_dir / "tensorboard"
        older = list(folder.glob("events.out.tfevents.*"))
        self.writer = self.make_writer(str(folder), purge_step=0)
        for line in lines:
            self.write(line)
        for path in older:
            path.unlink()

    def write(self, line: Line) -> None:
        for name, value in line.values.items():
            if value is not None:
                self.writer.add_scalar(f"{line.split}/{name}", value, line.step)

    def close(self) -> None:
        self.writer.close()
