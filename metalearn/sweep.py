"""A sweep: every combination is checked before the first job runs, then Hydra's own multirun runs them.

Hydra decides where and how jobs run (`hydra/launcher=…`); a job composes its configuration from its own overrides
exactly as the same command line alone would, so that it leaves the same bytes behind.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shlex
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from metalearn import config
from metalearn.errors import ConfigError, DataError, MetalearnError, raise_all
from metalearn.library import PRIMARY, Library, search_path_of

STOPPED = (130, 143)  # SIGINT, SIGTERM: the whole sweep was meant


class SweepStopped(BaseException):
    """A job was interrupted and saved; the jobs after it do not start. Hydra would record an Exception and go on."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@dataclass(frozen=True)
class RunJob:
    """What Hydra calls for each job. Never raises for a job that fails: the others go on."""

    config_dir: str | None
    num_jobs: int
    say: Callable[[str], None]
    started: list[int] = field(default_factory=list)  # numbers of the jobs that ran in this process

    def __call__(self, _: Any) -> int:
        hydra = HydraConfig.get()
        overrides, run_dir = list(hydra.overrides.task), from_here(Path(hydra.runtime.output_dir))
        self.started.append(hydra.job.num)
        self.say(f"\njob {hydra.job.num} ({hydra.job.num + 1} of {self.num_jobs}): {shlex.join(overrides)}")
        code = self.run(overrides, run_dir)
        if code in STOPPED:
            raise SweepStopped(code)
        return code

    def run(self, overrides: list[str], run_dir: Path) -> int:
        """The job's exit code; what went wrong is printed and stands in its folder."""
        from metalearn import run

        try:
            return run.train(config.compose(overrides, self.config_dir), overrides, run_dir)
        except MetalearnError as error:
            for problem in str(error).splitlines():
                self.say(f"error: {problem}")
            return note_failure(run_dir, overrides, str(error), error.exit_code)
        except Exception as error:  # noqa: BLE001 - whatever a job dies of, it must not take the others with it
            self.say(f"error: {type(error).__name__}: {error} (details in {run_dir / 'train.log'})")
            return note_failure(run_dir, overrides, "".join(traceback.format_exception(error)), 1)


def from_here(folder: Path) -> Path:
    """The folder as a person in the working folder would write it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def note_failure(run_dir: Path, overrides: list[str], reason: str, code: int) -> int:
    """Leave the failure where the table and a person look for it, even if the job never became a run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "train.log").open("a", encoding="utf-8") as log:
        log.write(reason.rstrip() + "\n")
    if not (run_dir / "overrides.yaml").exists():
        (run_dir / "overrides.yaml").write_text(yaml.safe_dump(overrides), encoding="utf-8")
    if not (run_dir / "status.json").exists():
        status = {"status": "failed", "exit_code": code, "pid": os.getpid()}
        (run_dir / "status.json").write_text(json.dumps(status), encoding="utf-8")
    return code


def multirun(overrides: list[str], config_dir: str | None, say: Callable[[str], None]) -> int:
    """Run every combination; 0 if all of them succeeded, 1 if any failed. Ends with a table and sweep.csv."""
    words, folder = take_folder(overrides, config_dir)
    jobs = config.expand_sweep([word for word in words if not word.startswith("hydra")], config_dir)
    config_check(words, jobs, config_dir)
    refuse_existing_sweep(folder)
    machine_check(jobs, config_dir, folder)
    say(f"{len(jobs)} jobs in {folder}")
    hydra = Hydra.create_main_hydra2("train", search_path_of(tuple(Library(config_dir).folders)))
    run_job = RunJob(config_dir, len(jobs), say)
    stopped = 0
    codes: list[int] = []
    try:
        where = "hydra.sweep.dir='" + str(folder).replace("'", "\\'") + "'"
        batches = hydra.multirun(PRIMARY, run_job, [*words, where], with_log_configuration=False)
        codes = [job.return_value for batch in batches for job in batch]
    except SweepStopped as stop:
        stopped = stop.exit_code
    finally:
        GlobalHydra.instance().clear()
    report(folder, say)
    if stopped:
        left = {number: job for number, job in enumerate(jobs) if number not in run_job.started}
        say("\n".join(ways_on(left, len(jobs), config_dir, folder)))
    return stopped or (1 if any(codes) else 0)


def ways_on(left: dict[int, list[str]], num_jobs: int, config_dir: str | None, folder: Path) -> Iterator[str]:
    """The commands for the jobs that never started, by number; the one that was stopped has named its own."""
    if left:
        yield f"\n{len(left)} of {num_jobs} jobs never started; run them with:"
    own = ["--config-dir", config_dir] if config_dir else []
    for number, overrides in left.items():
        yield "  " + shlex.join(["metalearn", "train", *own, *overrides, f"run_dir={folder / str(number)}"])


def take_folder(overrides: list[str], config_dir: str | None) -> tuple[list[str], Path]:
    """The overrides without the sweep's folder, and that folder: run_dir, hydra.sweep.dir, or a new one under outputs/sweeps."""
    rest, folder = [], Path("outputs/sweeps") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(2)}"
    for override in Library(config_dir).parse(overrides):
        if override.key_or_group in ("run_dir", "hydra.sweep.dir") and not override.is_sweep_override():
            folder = Path(str(override.value()))
        elif override.key_or_group == "run_dir":
            raise ConfigError(f"{override.input_line}: a sweep has one folder, with a folder per job in it; give one run_dir")
        else:
            rest.append(str(override.input_line))
    return rest, folder


def refuse_existing_sweep(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"run_dir={folder} is not empty; a sweep begins in a folder of its own, choose another run_dir")


def config_check(words: list[str], jobs: list[list[str]], config_dir: str | None) -> None:
    """Raise for what is wrong with the configurations of the jobs, and with Hydra's own settings."""
    own = [word for word in words if word.startswith("hydra")]
    check_all([functools.partial(config.compose, [*own, *job], config_dir) for job in jobs])


def machine_check(jobs: list[list[str]], config_dir: str | None, folder: Path) -> None:
    """Raise for what the machine and the data say against the jobs, once all configurations are known to be right."""
    from metalearn import build

    known: dict[str, Any] = {}
    check_all([functools.partial(build.check_machine, config.compose(job, config_dir), folder, known) for job in jobs])


def check_all(checks: Sequence[Callable[[], Any]]) -> None:
    """Raise every different problem once, with the numbers of the jobs that have it unless all do."""
    found: dict[tuple[type[MetalearnError], str], list[int]] = {}
    for number, check in enumerate(checks):
        try:
            check()
        except (ConfigError, DataError) as error:
            for problem in dict.fromkeys(getattr(error, "problems", str(error).splitlines())):
                found.setdefault((type(error), problem), []).append(number)
    errors = []
    for (kind, problem), numbers in found.items():
        jobs = f"job {numbers[0]}" if len(numbers) == 1 else f"jobs {', '.join(map(str, numbers))}"
        errors.append(kind(problem if len(numbers) == len(checks) else f"{problem} ({jobs} of {len(checks)}, counted from 0)"))
    raise_all(errors)


def report(folder: Path, say: Callable[[str], None]) -> None:
    from metalearn.analysis import tables

    if not folder.is_dir():
        return
    (folder / "sweep.csv").write_text(tables.sweep_csv(folder), encoding="utf-8")
    say(f"\n{tables.sweep(folder)}\n\n{folder / 'sweep.csv'}")
