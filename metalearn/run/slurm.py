"""A job of SLURM: how it learns that its time is up, and how it asks to be run again.

SLURM sends a signal some time before the end if the job asks for it: `#SBATCH --signal=USR1@180`. A run then
saves and requeues its job, which runs the same command again and so goes on with the run. SIGTERM requeues
nothing, because it is also what `scancel` sends, and because a job that SLURM preempts is requeued by SLURM
itself.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds for scontrol
Requeue = Callable[[], None]


def job() -> str | None:
    """The number of this job as `scontrol` takes it, ARRAY_TASK for a task of an array; None outside
    SLURM.
    """
    names = (
        ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
        if "SLURM_ARRAY_JOB_ID" in os.environ
        else ("SLURM_JOB_ID",)
    )
    number = "_".join(os.environ.get(name, "") for name in names)
    return number if re.fullmatch(r"\d+(_\d+)?", number, re.ASCII) else None


def restarts() -> int:
    """How often SLURM has run this job before."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if job() is not None and re.fullmatch(r"\d+", count, re.ASCII) else 0


def warnings() -> tuple[signal.Signals, ...]:
    """Signals that announce the end of the job's time."""
    return (signal.SIGUSR1,) if job() is not None else ()


def own_folder(parent: Path, words: Sequence[str]) -> Path | None:
    """parent/slurm-<job>_<8 digits of the words>, which the same command finds again when its job is run
    again.

    None outside SLURM, and where the job has given these words before and was not restarted since, as a
    person may by hand.
    """
    digits = hashlib.sha256("\n".join(words).encode("utf-8", "backslashreplace")).hexdigest()[:8]
    folder = parent / f"slurm-{job()}_{digits}"
    return folder if job() is not None and (restarts() or not folder.exists()) else None


def requeue(what: str = "run") -> None:
    """Ask for this job to be run again. A refusal is said, and changes nothing else: the run, or sweep, is
    saved.
    """
    command = ["scontrol", "requeue", str(job())]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        problem = (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
    except (OSError, subprocess.SubprocessError) as error:
        problem = str(error)
    if problem:
        log.warning(f"{' '.join(command)} failed: {problem}; the {what} has to be continued by hand")
    else:
        log.info(f"SLURM will run job {job()} again, which goes on with this {what}")
