"""A sweep: every combination of the values on one command line, each in a folder that its configuration
names.

Everything is checked before the first job runs. The same command again does only what is left: finished jobs
are skipped, interrupted ones go on, failed ones wait for --retry-failed, and new ones join. What is left is
read from the folders alone, so that a sweep may be killed at any moment, or run by several processes at once.
"""

from __future__ import annotations

import logging
import re
import secrets
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import yaml

from metalearn.config.loader import Library
from metalearn.errors import ConfigError, raise_if
from metalearn.files import replace_shared
from metalearn.run import slurm
from metalearn.sweep.jobs import JOBS, Job, is_left, machine_check, planned
from metalearn.sweep.launching import RunJob, launch, record
from metalearn.sweep.stopping import Stops

log = logging.getLogger(__name__)

NAMES_FOLDER = ("sweep", "run_dir", "hydra.sweep.dir")
OURS = ("hydra.sweep.subdir", "hydra.sweeper", "hydra/sweeper")


def multirun(overrides: list[str], config_dir: str | None, *, retry_failed: bool = False) -> int:
    """Run what is left of a sweep; 0 if all of its jobs are finished, 1 if any failed. Ends with a table and
    sweep.csv.
    """
    words, folder = take_folder(overrides, config_dir)
    jobs, doubles = planned(words, config_dir, folder)
    refuse_other_folder(folder)
    left = [job for job in jobs if is_left(job, retry_failed)]
    prebuilt = machine_check(left, len(jobs))
    ask_for(folder, jobs)
    with Stops(folder) as stops:
        record(folder)
        log.info("\n".join(overview(folder, jobs, left, doubles)))
        own = [word for word in words if word.startswith("hydra")]
        codes = launch(
            RunJob(left, len(jobs), folder, stops.mark, retry_failed, prebuilt), own, config_dir, stops
        )
        report(folder, jobs)
        code = stops.code
        if code:
            log.info("\n".join(way_on(overrides, config_dir, folder, jobs)))
        if stops.number in slurm.warnings():
            slurm.requeue("sweep")
    return code or int(any(codes) or any(is_open(job) for job in jobs))


def is_open(job: Job) -> bool:
    """Whether nobody is about to finish the job. A rehearsal leaves nothing to finish."""
    return not job.rehearses and job.state not in ("finished", "running")


def take_folder(overrides: list[str], config_dir: str | None) -> tuple[list[str], Path]:
    """The overrides without the sweep's folder, and that folder: outputs/sweeps/<name>, run_dir, or a new
    one.
    """
    rest: list[str] = []
    named: dict[str, str] = {}
    for override in Library(config_dir).parse(overrides):
        key, text = override.key_or_group, str(override.input_line)
        if key.startswith(OURS):
            raise ConfigError(
                f"{text}: metalearn itself expands a sweep and names the folders of its jobs; leave it out"
            )
        if key not in NAMES_FOLDER or override.is_add() or override.is_delete():
            rest.append(text)
        elif override.is_sweep_override():
            raise ConfigError(f"{text}: a sweep has one folder, with a folder per job in it; give one {key}")
        elif override.value() is not None:
            named[key] = str(override.value())
    if len(named) > 1:
        both = " and ".join(f"{key}={value}" for key, value in named.items())
        raise ConfigError(f"{both} both name the folder of the sweep; give one of them")
    if "sweep" in named:
        raise_if(name_problems(named["sweep"]))
        return rest, Path("outputs/sweeps") / named["sweep"]
    if named:
        return rest, Path(next(iter(named.values())))
    parent = Path("outputs/sweeps")
    return rest, slurm.own_folder(
        parent, overrides
    ) or parent / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(2)}"


def name_problems(name: str) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", name, re.ASCII):
        yield (
            f"sweep={name} is not a name of letters, digits and . _ + -; for a folder elsewhere write "
            "run_dir=FOLDER"
        )


def refuse_other_folder(folder: Path) -> None:
    """A sweep begins in a folder of its own, or goes on in its own."""
    if not folder.is_dir():
        return
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if "config.yaml" in names:
        raise ConfigError(
            f"{folder} holds a run; a sweep begins in a folder of its own, choose another sweep=NAME or "
            "run_dir=FOLDER"
        )
    if names and "sweep.csv" not in names and not any(folder.glob(JOBS)):
        held = ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])])
        raise ConfigError(
            f"{folder} is not empty and no sweep (it holds {held}); "
            "a sweep begins in a folder of its own, choose another sweep=NAME or run_dir=FOLDER"
        )


def ask_for(folder: Path, jobs: Sequence[Job]) -> None:
    """Make the folder of every job, with its words, so that the table also knows those that never start."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for job in jobs:
            words = job.folder / "overrides.yaml"
            if not job.rehearses and not words.exists():
                job.folder.mkdir(exist_ok=True)
                replace_shared(words, yaml.safe_dump(job.words))
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder}: {error.strerror}; choose another sweep=NAME or run_dir=FOLDER"
        ) from error


def overview(folder: Path, jobs: Sequence[Job], left: Sequence[Job], doubles: int) -> Iterator[str]:
    """What this command will do, with a line for each job that it leaves alone."""
    yield f"{len(jobs)} job{'s' * (len(jobs) != 1)} in {folder}, {len(left)} to run"
    if doubles:
        yield f"{doubles} combinations have the configuration of another one, and are one job with it"
    to_run = {job.folder for job in left}
    yield from (f"{job.folder.name}: {job.why_skipped()}" for job in jobs if job.folder not in to_run)
    others = {path.parent for path in folder.glob(JOBS)} - {job.folder for job in jobs}
    if others:
        yield f"{len(others)} jobs of other commands are in {folder} too; they stay as they are"


def report(folder: Path, jobs: Sequence[Job]) -> None:
    """The closing table and sweep.csv; nothing after a rehearsal, which leaves no trace."""
    from metalearn.sweep import table

    if any(folder.glob(JOBS)):
        record(folder)
        log.info(f"\n{table.sweep(folder)}\n\n{folder / 'sweep.csv'}")


def way_on(
    overrides: Sequence[str], config_dir: str | None, folder: Path, jobs: Sequence[Job]
) -> Iterator[str]:
    """The command that does the rest of a sweep that was stopped."""
    left = [job for job in jobs if is_open(job)]
    own = ["--config-dir", config_dir] if config_dir else []
    named = any(re.match(rf"({'|'.join(NAMES_FOLDER)})=", word) for word in overrides)
    yield f"\nstopped with {len(left)} of {len(jobs)} jobs not finished; go on with:"
    yield "  " + shlex.join(
        ["metalearn", "train", "-m", *own, *overrides, *([] if named else [f"sweep={folder.name}"])]
    )
