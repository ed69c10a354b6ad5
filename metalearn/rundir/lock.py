"""Who may write into a run folder: one process at a time, and nowhere else through a link."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path
from typing import TextIO

from metalearn.errors import ConfigError, InUseError

LOCK_TRIES, LOCK_PAUSE = 5, 0.04  # seconds
OWN_FOLDERS = ("checkpoints", "evals", "plots", "tensorboard", "mlflow")


def refuse_links(run_dir: Path) -> None:
    """Raise ConfigError for a link, a pipe or a device where a run writes: it must not lead what is written
    to somewhere else.
    """
    own = [path for name in OWN_FOLDERS for path in (run_dir / name).rglob("*")]
    for path in (*run_dir.glob("*"), *own):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue  # of a process that holds the run
        if stat.S_ISLNK(mode):
            raise ConfigError(
                f"{path} is a symbolic link; a run writes into its own folder only, so put what it means in "
                "its place"
            )
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ConfigError(f"{path} is neither a file nor a folder; a run writes files only, so remove it")


def take_lock(run_dir: Path) -> TextIO:
    """The open lock file of a run folder, which is made if need be. InUseError naming the process that holds
    it.

    Tried a few times: who only asks whether a run lives holds the lock for an instant, and a process that
    gives its folder up takes the lock file along, so that what was locked may no longer be the file of that
    name.
    """
    path, holder = run_dir / ".lock", "unknown"
    for _ in range(LOCK_TRIES):
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or holder
        except BaseException:
            lock.close()
            raise
        lock.close()
        time.sleep(LOCK_PAUSE)
    raise InUseError(
        f"{run_dir} is in use by process {holder}; wait for it, stop it, or choose another run_dir"
    )
