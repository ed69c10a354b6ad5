"""The folder of a run: who holds it, what it was asked, what it measured, how it ended."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import yaml
from tqdm import tqdm

from metalearn.errors import CheckpointError, ConfigError
from metalearn.files import LineFile, read_json, read_yaml, replace_file
from metalearn.loggers import Logger
from metalearn.loggers.guard import LoggerGuard
from metalearn.rundir.checkpoints import SaveError
from metalearn.rundir.lock import refuse_links, take_lock
from metalearn.rundir.messages import echo, listening

log = logging.getLogger(__name__)

WRITTEN_EARLY = (
    *("config.yaml", "overrides.yaml", "status.json", "env.json", "spec.json", "splits.json"),
    *("train.log", "metrics.jsonl"),
)


class RunLog:
    """Context that holds the lock of a run folder and writes its files.

    Raises ConfigError on entry when the folder cannot be written, and InUseError when another process holds
    it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._made = False
        self._held: list[str] | None = None
        self._lock: TextIO | None = None
        self._text = LineFile(run_dir / "train.log")
        self._metrics = LineFile(run_dir / "metrics.jsonl")
        self._listening = ExitStack()
        self._guard: LoggerGuard | None = None
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> RunLog:
        try:
            self._made = not self.run_dir.exists()
            refuse_links(self.run_dir)
            self._lock = take_lock(self.run_dir)
            self._lock.truncate(0)
            self._lock.write(f"{os.getpid()}\n")
            self._lock.flush()
        except OSError as error:
            raise ConfigError(
                f"cannot write to run_dir={self.run_dir}: {error.strerror}; choose a folder that can be "
                "written"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._listening:
            self.close_bar()
            if self._guard is not None:
                self._guard.close()
        self._close()
        if self._lock is not None:
            self._lock.close()

    def write_request(self, cfg: dict[str, Any], overrides: list[str]) -> None:
        """overrides.yaml and, last, config.yaml, whose presence makes the folder a run. ConfigError if the
        folder refuses.
        """
        try:
            self.write("overrides.yaml", yaml.safe_dump(overrides))
            self.write("config.yaml", yaml.safe_dump(cfg, sort_keys=False))
        except SaveError as error:
            raise ConfigError(f"{error.what}; free space or choose another run_dir") from error

    def status(self, state: str, exit_code: int | None = None, **more: str | int) -> None:
        """state: running, finished, failed or preempted. SaveError for a disk that refuses, only if the run
        is finished.
        """
        try:
            self.write_json(
                "status.json", {"status": state, "exit_code": exit_code, "pid": os.getpid(), **more}
            )
        except SaveError as error:
            if state == "finished":
                raise
            log.warning(error.what)

    @property
    def finished(self) -> bool:
        return (self.read_json("status.json") or {}).get("status") == "finished"

    def overrides(self) -> list[str]:
        """The words that the run was started with; empty if the file is gone or damaged."""
        try:
            words = read_yaml(self.run_dir / "overrides.yaml")
        except (OSError, ValueError):
            return []
        return [str(word) for word in words] if isinstance(words, list) else []

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The mapping in a JSON file of the run; None if it is absent or damaged, as for facts that a run can
        do without.
        """
        try:
            found = read_json(self.run_dir / name)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def discard(self) -> None:
        """Leave the folder as if the run had never been asked for: only files that a run writes are removed.

        The folder itself goes if this process made it.
        """
        self._close()
        for name in (*WRITTEN_EARLY, ".lock"):
            (self.run_dir / name).unlink(missing_ok=True)
        for folder in (self.run_dir / "checkpoints", *([self.run_dir] if self._made else [])):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        self.write(name, json.dumps(strict(values), indent=2) + "\n")

    def write_csv(self, name: str, columns: dict[str, list[Any]]) -> None:
        """One row per entry of the columns, a header above them."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        self.write(name, text.getvalue())

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the run whole or not at all. SaveError if the folder refuses."""
        path = self.run_dir / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise SaveError(f"cannot write {path}: {error.strerror or error}") from error

    def hold(self) -> None:
        """Keep lines for train.log back until `release`; without it they are dropped, as for a command that
        is refused.
        """
        self._held = []

    def release(self) -> None:
        """Write the lines that were held back."""
        held, self._held = self._held or [], None
        for text in held:
            self.note(text)

    def listen(self) -> None:
        """From now until the folder is left, all messages of this package go to the person watching and to
        train.log.
        """
        self._listening.enter_context(listening(self._say))

    def note(self, text: str) -> None:
        """A line for train.log alone."""
        if self._held is not None:
            self._held.append(text)
            return
        stamp = datetime.now().isoformat(sep=" ", timespec="seconds")
        self._text.write("".join(f"{stamp} {line}\n" for line in text.splitlines() or [""]))

    def metric(self, step: int, split: str, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        line = strict({"step": step, "split": split, **values})
        self._metrics.write(json.dumps(line) + "\n")
        if self._guard is not None:
            self._guard.write(line)

    def guard(self, logger: Logger) -> None:
        """Tell a logger of the lines of metrics.jsonl, those that stand in it and all that follow."""
        self._guard = LoggerGuard(logger, self.run_dir)
        self._guard.open()

    def sync_metrics(self) -> int:
        """Bytes of metrics.jsonl that are safely on the disk, which is all of it. SaveError if the disk
        refuses.
        """
        try:
            return self._metrics.sync()
        except OSError as error:
            raise SaveError(f"cannot write {self._metrics.path}: {error.strerror or error}") from error

    def rewind_metrics(self, offset: int) -> None:
        """Forget the lines after a checkpoint; CheckpointError if lines before it are missing."""
        self.require_metrics(offset)
        self._metrics.rewind(offset)
        if self._guard is not None:
            self._guard.reopen()

    def require_metrics(self, offset: int) -> None:
        """CheckpointError if metrics.jsonl is shorter than a checkpoint knows it."""
        path = self.run_dir / "metrics.jsonl"
        have = path.stat().st_size if path.exists() else 0
        if have < offset:
            raise CheckpointError(
                f"{path} has {have} bytes, the checkpoint knows {offset}; restore the file from a backup"
            )

    def open_bar(self, total: int, initial: int) -> None:
        """Show progress on a terminal; elsewhere `progress` prints plain lines."""
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True, leave=False)

    def progress(self, step: int, total: int, text: str | None = None) -> None:
        """The run has reached this step; text: its latest numbers, if there are any."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if text:
                self._bar.set_postfix_str(text, refresh=False)
        elif text:
            log.info(f"step {step}/{total}  {text}")

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _close(self) -> None:
        for file in (self._metrics, self._text):
            file.close()

    def _say(self, text: str) -> None:
        self.note(text)
        echo(text, beside=self._bar)


def strict(value: Any) -> Any:
    """The value in strict JSON, which has no NaN or infinity: they become null."""
    if isinstance(value, dict):
        return {name: strict(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
