"""What Hydra's launcher calls for each job, here or in processes of its own, and the launch itself."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from metalearn.config.hydra_parts import (
    BasicLauncher,
    Callbacks,
    GlobalHydra,
    Hydra,
    HydraConfig,
    HydraContext,
    Plugins,
    RunMode,
)
from metalearn.config.loader import PRIMARY, Library, search_path_of
from metalearn.errors import InUseError, MetalearnError
from metalearn.files import replace_shared
from metalearn.run import slurm
from metalearn.rundir import reader
from metalearn.rundir.messages import echo, listening
from metalearn.sweep import table
from metalearn.sweep.jobs import JOBS, Job, is_left
from metalearn.sweep.stopping import Stops, SweepStopped, heeding, leave_mark, marked

log = logging.getLogger(__name__)

STOPPED = (130, 143)  # SIGINT, SIGTERM: the whole sweep was meant


@dataclass(frozen=True)
class RunJob:
    """What the launcher calls for each job, which Hydra numbers from 0. Never raises for a job that fails:
    the others go on.

    threads: of a job that names no number, as if it ran alone; a launcher may give its processes fewer, which
    changes bits.
    slurm_job: of the sweep's process.
    """

    jobs: Sequence[Job]
    num_jobs: int
    folder: Path
    mark: Path
    retry_failed: bool
    prebuilt: Any = None  # of the check, in this process
    threads: int | None = None
    parent: int = field(default_factory=os.getpid)
    slurm_job: str | None = field(default_factory=slurm.job)

    def __call__(self, _: Any) -> int:
        """The exit code of the job; 0 also for one that is not to be run any more."""
        job = self.jobs[HydraConfig.get().job.num]
        # A child runs one job after the other beside its siblings. A launcher may also run jobs farther off,
        # each by itself.
        at_home, child = os.getpid() == self.parent, os.getppid() == self.parent
        if stopped_by := marked(self.mark):
            if at_home:
                raise SweepStopped(stopped_by)
            return 0
        prepare(self.threads if child else None)
        # elsewhere there is no command line that listens
        with contextlib.nullcontext() if at_home else listening(echo):
            with heeding(self.mark, self.parent if child else None) as signals:
                code = self.perform(job, silent=child)
            record(self.folder)
        if at_home and (code in STOPPED or signals.received):
            raise SweepStopped(
                marked(self.mark) or (code - 128 if code in STOPPED else signals.received or 0)
            )
        if child and os.getppid() != self.parent:
            os._exit(code)  # nobody waits for the result, and the process would only wait for more
        return code

    def perform(self, job: Job, *, silent: bool) -> int:
        """The job's exit code; what went wrong is printed and stands in its folder. silent: what it prints is
        only in its log.
        """
        if not is_left(job, self.retry_failed):  # another process was here since this one looked
            log.info(f"{job.folder.name}: {job.why_skipped()}")
            return 0
        title = f"job {job.number} of {self.num_jobs}"
        log.info(f"\n{title}{' goes on' if job.has_begun else ''}: {shlex.join(job.own)}")
        try:
            with silence() if silent else contextlib.nullcontext():
                code = begin_or_go_on(job, self.requeue, self.prebuilt)
        except MetalearnError as error:
            # another process was faster
            if isinstance(error, InUseError) or job.state in (
                "running",
                "finished",
            ):
                log.info(f"{job.folder.name}: {job.why_skipped()}")
                return 0
            for problem in str(error).splitlines():
                log.error(problem)
            code = note_failure(job, str(error), error.exit_code)
        except Exception as error:  # noqa: BLE001 - whatever a job dies of, it must not take the others with it
            log.error(f"{type(error).__name__}: {error} (details in {job.folder / 'train.log'})")
            code = note_failure(job, "".join(traceback.format_exception(error)), 1)
        if silent:
            log.info(f"{title} {job.state}: {shlex.join(job.own)}")
        return code

    def requeue(self) -> None:
        """What a run does that SLURM has warned: the sweep's process requeues their SLURM job, once, when all
        have saved.
        """
        if slurm.job() == self.slurm_job:
            leave_mark(self.mark, signal.SIGUSR1)
        else:  # a launcher gave this job one of its own
            slurm.requeue()


def launch(run_job: RunJob, own: Sequence[str], config_dir: str | None, stops: Stops) -> list[int]:
    """The exit codes of the jobs that ran. own: the words of the command line for Hydra itself."""
    codes: list[int] = []
    left = list(run_job.jobs)
    while left and not stops.code:
        try:
            return codes + launch_once(replace(run_job, jobs=left), own, config_dir)
        except SweepStopped as stop:
            stops.stop(stop.number)
        except Exception as error:  # noqa: BLE001 - of the launcher; one that loses a process gives up all of them
            log.error(f"the launcher gave up: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            codes.append(1)
            untouched = [job for job in left if job.state == "not started"]
            left = untouched if len(untouched) < len(left) else []
    return codes


def launch_once(run_job: RunJob, own: Sequence[str], config_dir: str | None) -> list[int]:
    """Give the jobs to the launcher that Hydra's own words choose."""
    hydra = Hydra.create_main_hydra2("train", search_path_of(tuple(Library(config_dir).folders)))
    try:
        where = "hydra.sweep.dir='" + str(run_job.folder).replace("'", "\\'") + "'"
        cfg = hydra.compose_config(PRIMARY, [*own, where], RunMode.MULTIRUN, with_log_configuration=False)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(cfg))
        in_here = cfg.hydra.launcher._target_ == f"{BasicLauncher.__module__}.{BasicLauncher.__qualname__}"
        if not in_here:
            run_job = with_threads(run_job)
            leave_none_idle(cfg.hydra.launcher, len(run_job.jobs))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=run_job, config=cfg
        )
        return [
            job.return_value
            for job in launcher.launch([job.words for job in run_job.jobs], initial_job_idx=0)
        ]
    finally:
        GlobalHydra.instance().clear()


def leave_none_idle(launcher: DictConfig, num_jobs: int) -> None:
    """No more processes than jobs: one that never had a job knows nothing of us, and would die of a signal
    from the terminal.
    """
    wanted = launcher.get("n_jobs")
    if (
        isinstance(wanted, int)
        and (wanted if wanted > 0 else max(len(os.sched_getaffinity(0)) + 1 + wanted, 1)) > num_jobs
    ):
        launcher.n_jobs = num_jobs


def with_threads(run_job: RunJob) -> RunJob:
    """The same with the number of threads that a job takes alone, and a word if jobs side by side will fight
    over the cores.
    """
    from metalearn.build.device import default_threads

    threads = default_threads()
    if threads > 1 and any(job.cfg["device"]["threads"] is None for job in run_job.jobs):
        log.warning(
            f"each job computes with {threads} threads, as it would alone; jobs side by side are faster with "
            "device.threads=1"
        )
    return replace(run_job, threads=threads)


def prepare(threads: int | None) -> None:
    """What takes seconds, before the job listens for signals. threads: set before anything asks how many this
    process has.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    from metalearn.run import train  # noqa: F401


def begin_or_go_on(job: Job, requeue: slurm.Requeue, prebuilt: Any) -> int:
    """The exit code of the job's run, which is begun or resumed."""
    from metalearn.run.resume import resume
    from metalearn.run.train import train

    if job.has_begun:
        return resume(job.folder, job.words_for_resume, prebuilt=prebuilt, requeue=requeue)
    make_room(job)
    return train(job.cfg, job.words, job.folder, prebuilt=prebuilt, requeue=requeue)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Jobs side by side would only interrupt each other; each has its train.log."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def make_room(job: Job) -> None:
    """Remove what a start that came to nothing left in the job's folder. InUseError if somebody is starting
    right now.
    """
    from metalearn.rundir.log import RunLog

    with RunLog(job.folder) as runlog:
        if not job.has_begun:
            runlog.discard()


def note_failure(job: Job, reason: str, code: int) -> int:
    """Leave the failure where the table and a person look for it, even if the job never became a run."""
    from metalearn.rundir.log import RunLog

    try:
        with RunLog(job.folder) as runlog:
            if reader.last_words(job.folder) != reason.strip().rpartition("\n")[2].strip():
                runlog.note(f"failed: {reason.strip()}")
            if not (job.folder / "overrides.yaml").exists():
                runlog.write("overrides.yaml", yaml.safe_dump(job.words))
            runlog.status("failed", code)
    except InUseError:
        pass  # another process is at it already, and will say how it went
    except (MetalearnError, OSError) as error:
        log.error(f"the failure could not be noted: {error}")
    return code


def record(folder: Path) -> None:
    """Write sweep.csv as things stand, unless jobs only rehearse. A full disk is said, and stops nothing."""
    if not any(folder.glob(JOBS)):
        return
    try:
        replace_shared(folder / "sweep.csv", table.sweep_csv(folder))
    except OSError as error:
        log.warning(f"{folder / 'sweep.csv'} cannot be written: {error.strerror}")
