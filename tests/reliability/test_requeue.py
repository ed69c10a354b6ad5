"""Fault 11: SLURM takes the machine away and runs the job again. `scontrol` is a script that writes down what
it was asked.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalearn.cli import main as cli
from metalearn.engine import trainer
from metalearn.run import slurm
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.sweep import launching, stopping
from tests.reliability import harness
from tests.reliability.harness import assert_same_end, finish, start, struck, train, wait
from tests.reliability.test_sweeps import SIDE_BY_SIDE, assert_as_alone, command, joblib, jobs, rows, words

ALONE, ARRAY = (
    {"SLURM_JOB_ID": "77"},
    {"SLURM_JOB_ID": "80", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"},
)


def within_job(
    folder: Path, job: dict[str, str], work: Callable[[], int], *, answer: str = "exit 0"
) -> Callable[[], int]:
    """The work of a process of this job, with a `scontrol` that writes its words to folder/asked and gives
    this answer.
    """
    (folder / "bin").mkdir(exist_ok=True)
    scontrol = folder / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{answer}\n')
    scontrol.chmod(0o755)

    def changed() -> int:
        os.environ.update({**job, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"})
        return work()

    return changed


def strike(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def log(run_dir: Path) -> str:
    return (run_dir / "train.log").read_text()


@pytest.mark.fault(11)
@pytest.mark.parametrize(("job", "number"), [(ALONE, "77"), (ARRAY, "77_3")], ids=["job", "array"])
def test_fault_11_a_job_that_is_run_again_finds_its_run_and_goes_on(
    job: dict[str, str], number: str, cache: Path, reference: Path, tmp_path: Path
) -> None:
    """No folder is named: the command alone finds it. SIGTERM comes a moment later, as from SLURM, and is no
    second signal.
    """
    words = ["train", *harness.TINY, *harness.QUICK, f"data.cache_dir={cache}"]

    def command() -> int:
        os.chdir(tmp_path)
        return cli.main(words)

    def both() -> None:
        strike(signal.SIGUSR1)()
        strike(signal.SIGTERM)()

    assert finish(within_job(tmp_path, job, struck(command, both))) == 143
    [run_dir] = (tmp_path / "outputs" / "protonet_glyphs").iterdir()
    assert run_dir.name.startswith(f"slurm-{number}_")
    assert (tmp_path / "asked").read_text() == f"requeue {number}\n"
    assert harness.status(run_dir) == {
        **harness.status(run_dir),
        "status": "preempted",
        "exit_code": 143,
        "restarts": 0,
    }
    assert CheckpointStore(run_dir).pointed("last") == 4
    assert "stopped by SIGUSR1; continue with: metalearn resume" in log(run_dir)
    assert f"SLURM will run job {number} again, which goes on with this run" in log(run_dir)
    again = {**job, "SLURM_RESTART_COUNT": "2"}
    assert finish(within_job(tmp_path, again, command)) == 0
    assert harness.status(run_dir) == {**harness.status(run_dir), "status": "finished", "restarts": 2}
    assert f"restart 2 of SLURM job {number}" in log(run_dir)
    assert "resuming at step 4" in log(run_dir)
    assert_same_end(run_dir, reference)
    # a job of several commands runs those that are done again too
    assert finish(within_job(tmp_path, again, command)) == 0
    assert list((tmp_path / "outputs" / "protonet_glyphs").iterdir()) == [run_dir]


@pytest.mark.slow
@pytest.mark.fault(11)
def test_fault_11_two_ranks_are_requeued_as_one_run(cache: Path, tmp_path: Path) -> None:
    """SLURM's signal reaches every process of the job. The run has a folder of its own name."""
    run_dir = tmp_path / "run"
    words = [
        "train",
        *harness.TINY,
        *harness.QUICK,
        "device.ranks=2",
        f"data.cache_dir={cache}",
        f"run_dir={run_dir}",
    ]

    def all_of_them() -> None:
        for process in (*children(os.getpid()), os.getpid()):
            os.kill(process, signal.SIGUSR1)

    work = harness.forking_ranks(lambda: cli.main(words))
    assert finish(within_job(tmp_path, ALONE, struck(work, all_of_them))) == 143
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    # another job, or the same one by hand, is told to resume
    assert finish(within_job(tmp_path, ALONE, work)) == 2
    assert finish(within_job(tmp_path, {**ALONE, "SLURM_RESTART_COUNT": "1"}, work)) == 0
    assert harness.status(run_dir) == {**harness.status(run_dir), "status": "finished", "restarts": 1}


def children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.fault(11)
def test_fault_11_a_job_killed_without_a_word_goes_on_too(
    cache: Path, reference: Path, tmp_path: Path
) -> None:
    """As when a machine is lost, after which SLURM requeues by itself."""
    run_dir = tmp_path / "run"
    words = ["train", *harness.TINY, *harness.QUICK, f"data.cache_dir={cache}", f"run_dir={run_dir}"]
    killed = within_job(tmp_path, ALONE, lambda: cli.main(words))
    assert finish(killed, fault="step:end@4") == harness.KILLED
    assert finish(within_job(tmp_path, {**ALONE, "SLURM_RESTART_COUNT": "1"}, lambda: cli.main(words))) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(11)
def test_a_job_that_is_run_again_goes_on_with_no_other_run(
    cfg: dict[str, Any], cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert finish(train(cfg, run_dir)) == 0
    words = [
        "train",
        *harness.TINY,
        *harness.QUICK,
        "seed=7",
        f"data.cache_dir={cache}",
        f"run_dir={run_dir}",
    ]
    capfd.readouterr()
    assert finish(within_job(tmp_path, {**ALONE, "SLURM_RESTART_COUNT": "1"}, lambda: cli.main(words))) == 2
    said = capfd.readouterr().err
    assert (
        f"{run_dir} holds another run, which restart 1 of SLURM job 77 may not go on with; choose another "
        "run_dir" in said
    )
    assert "seed: 0 -> 7" in said


def test_a_command_that_is_given_twice_within_a_job_is_two_runs(cache: Path, tmp_path: Path) -> None:
    """As in an allocation that a person works in."""
    words = ["train", *harness.TINY, *harness.QUICK, f"data.cache_dir={cache}"]

    def command() -> int:
        os.chdir(tmp_path)
        return cli.main(words)

    assert [finish(within_job(tmp_path, ALONE, command)) for _ in range(2)] == [0, 0]
    dated, own = sorted((tmp_path / "outputs" / "protonet_glyphs").iterdir())
    assert (own.name.startswith("slurm-77_"), dated.name.startswith("slurm")) == (True, False)


@pytest.mark.slow
@pytest.mark.fault(11)
def test_a_sweep_without_a_name_goes_on_when_its_job_is_run_again(cache: Path, tmp_path: Path) -> None:
    words = ["train", "-m", "seed=0,1", *harness.TINY, *harness.QUICK, f"data.cache_dir={cache}"]

    def command() -> int:
        os.chdir(tmp_path)
        return cli.main(words)

    assert finish(within_job(tmp_path, ALONE, struck(command, strike(signal.SIGUSR1)))) == 143
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert finish(within_job(tmp_path, {**ALONE, "SLURM_RESTART_COUNT": "1"}, command)) == 0
    [folder] = (tmp_path / "outputs" / "sweeps").iterdir()
    assert folder.name.startswith("slurm-77_")
    assert [harness.status(run_dir)["status"] for run_dir in folder.glob("seed-*")] == ["finished"] * 2


def scripted(launcher: Callable[..., list[int]], work: Callable[[], int]) -> Callable[[], int]:
    """The work of a sweep's process whose jobs this launcher starts."""

    def changed() -> int:
        launching.launch_once = launcher
        return work()

    return changed


def two_processes(folder: Path) -> Callable[..., list[int]]:
    """A launcher that forks: one process takes job 1, idles until the sweep is stopped, and takes job 3; the
    other one job 2.

    Step 3 of job 2 lasts until its run has been told.
    """

    def take(run_job: launching.RunJob, numbers: list[int]) -> int:
        usual = trainer.Trainer.train_step

        def train_step(self: trainer.Trainer) -> None:
            if self.step == 3 and numbers == [1]:
                run = signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr]
                reach("long step", lambda: run.received is not None)
            usual(self)

        trainer.Trainer.train_step = train_step  # type: ignore[method-assign]
        for number in numbers:
            if number == 2:
                reach("between two jobs", lambda: bool(stopping.marked(run_job.mark)))
            job = types.SimpleNamespace(job=types.SimpleNamespace(num=number))
            launching.HydraConfig = types.SimpleNamespace(get=lambda job=job: job)  # type: ignore[attr-defined]
            run_job(None)
        return 7

    def reach(place: str, told: Callable[[], bool]) -> None:
        (folder / place).touch()
        wait_for(told)

    def launch(run_job: launching.RunJob, *rest: object) -> list[int]:
        children = [start(lambda numbers=numbers: take(run_job, numbers)) for numbers in ([0, 2], [1])]
        codes = [wait(child) for child in children]
        (folder / "codes").write_text(str(codes))
        return [0]

    return launch


def wait_for(*events: Callable[[], bool], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not all(happened() for happened in events):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.fault(11)
@pytest.mark.parametrize("whom", ["the sweep's process", "all processes", "a job's process"])
def test_fault_11_a_sweep_side_by_side_saves_all_jobs_and_is_requeued_once(
    whom: str, cache: Path, alone: dict[int, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One job in training, one process between two jobs. SIGTERM comes a moment later, as from SLURM, and is
    no second signal.
    """
    sweep = command(tmp_path, *words(cache))
    child = start(within_job(tmp_path, ALONE, scripted(two_processes(tmp_path), sweep)))
    wait_for((tmp_path / "long step").exists, (tmp_path / "between two jobs").exists)
    busy = harness.status(jobs(tmp_path)[1])["pid"]
    for process in {
        "the sweep's process": [child],
        "all processes": [*children(child), child],
        "a job's process": [busy],
    }[whom]:
        os.kill(process, signal.SIGUSR1)
    if whom == "the sweep's process":
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
    assert wait(child) == 143
    assert (tmp_path / "codes").read_text() == "[7, 7]"
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert "SLURM will run job 77 again, which goes on with this sweep" in capfd.readouterr().out
    assert [row["status"] for row in rows(tmp_path)] == ["finished", "preempted", "not started"]
    assert CheckpointStore(jobs(tmp_path)[1]).pointed("last") == 4
    assert finish(within_job(tmp_path, {**ALONE, "SLURM_RESTART_COUNT": "1"}, sweep)) == 0
    assert_as_alone(tmp_path, alone)
    assert (tmp_path / "asked").read_text() == "requeue 77\n"


@pytest.mark.slow
@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("place", "visit", "ends"),
    [
        ("record", 1, ["finished", "not started", "not started"]),
        ("make_room", 2, ["finished", "preempted", "not started"]),
    ],
)
def test_fault_11_a_warning_between_two_jobs_requeues_the_sweep_once(
    place: str, visit: int, ends: list[str], cache: Path, alone: dict[int, Path], tmp_path: Path
) -> None:
    """After the first job; or when the second one has begun, but its run does not listen yet."""
    sweep = command(tmp_path, *words(cache))

    def warned() -> int:
        usual, usual_step, visits = getattr(launching, place), trainer.Trainer.train_step, []

        def train_slowly(self: trainer.Trainer) -> None:
            time.sleep(0.2)
            usual_step(self)

        def strike(*args: object) -> None:
            visits.append(place)
            if len(visits) == visit:
                os.kill(os.getpid(), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGTERM)
                trainer.Trainer.train_step = train_slowly  # type: ignore[method-assign]
            usual(*args)

        setattr(launching, place, strike)
        return sweep()

    assert finish(within_job(tmp_path, ALONE, warned)) == 143
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert [row["status"] for row in rows(tmp_path)] == ends
    assert finish(within_job(tmp_path, {**ALONE, "SLURM_RESTART_COUNT": "1"}, sweep)) == 0
    assert_as_alone(tmp_path, alone)


def test_a_job_that_a_launcher_gave_a_slurm_job_of_its_own_requeues_that_one(
    cache: Path, tmp_path: Path
) -> None:
    """As submitit does. The sweep's process is in another job, or in none."""

    def launch(run_job: launching.RunJob, *rest: object) -> list[int]:
        def far() -> int:
            os.environ["SLURM_JOB_ID"] = "78"
            launching.HydraConfig = types.SimpleNamespace(  # type: ignore[attr-defined]
                get=lambda: types.SimpleNamespace(job=types.SimpleNamespace(num=0))
            )
            return struck(lambda: run_job(None), strike(signal.SIGUSR1))()

        (tmp_path / "code").write_text(str(finish(far)))
        return [0]

    finish(within_job(tmp_path, ALONE, scripted(launch, command(tmp_path, *words(cache)))))
    assert (tmp_path / "code").read_text() == "143"
    assert (tmp_path / "asked").read_text() == "requeue 78\n"


def test_a_sweep_outside_slurm_or_told_to_end_requeues_nothing(cache: Path, tmp_path: Path) -> None:
    sweep = struck(command(tmp_path, *words(cache)), strike(signal.SIGTERM))
    assert finish(within_job(tmp_path, ALONE, sweep)) == 143
    assert not (tmp_path / "asked").exists()


@joblib
@pytest.mark.slow
@pytest.mark.parametrize("whom", ["group", "process"])
def test_joblib_jobs_are_warned_and_requeued_once(whom: str, cache: Path, tmp_path: Path) -> None:
    given = words(cache, *SIDE_BY_SIDE, "trainer.outer_steps=1000000")

    def program() -> int:
        os.chdir(tmp_path)
        os.setsid()
        os.execv(sys.executable, [sys.executable, "-m", "metalearn", *given])

    child = start(within_job(tmp_path, ALONE, program))
    wait_for(lambda: len(list((tmp_path / "outputs/sweeps/kept").glob("*/checkpoints/last"))) == 2)
    (os.killpg if whom == "group" else os.kill)(child, signal.SIGUSR1)
    assert wait(child) == 143
    assert sorted(row["status"] for row in rows(tmp_path)) == ["not started", "preempted", "preempted"]
    assert (tmp_path / "asked").read_text() == "requeue 77\n"


def test_what_scontrol_says_against_it_is_passed_on(cfg: dict[str, Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    work = struck(train(cfg, run_dir), strike(signal.SIGUSR1))
    refusal = "echo 'Requested operation is presently disabled' >&2; exit 1"
    assert finish(within_job(tmp_path, ALONE, work, answer=refusal)) == 143
    sentence = (
        "scontrol requeue 77 failed: Requested operation is presently disabled; the run has to be "
        "continued by hand"
    )
    assert f"warning: {sentence}" in log(run_dir)


def test_a_machine_without_scontrol_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    slurm.requeue()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "scontrol requeue 77 failed: [Errno 2] No such file or directory: 'scontrol'; the run has to be "
            "continued by hand",
        )
    ]


def test_scancel_and_other_signals_requeue_nothing(cfg: dict[str, Any], tmp_path: Path) -> None:
    assert (
        finish(within_job(tmp_path, ALONE, struck(train(cfg, tmp_path / "job"), strike(signal.SIGTERM))))
        == 143
    )
    assert harness.status(tmp_path / "job")["status"] == "preempted"
    assert not (tmp_path / "asked").exists()
    # Outside SLURM the warning keeps its usual meaning, which is to end the process.
    assert finish(struck(train(cfg, tmp_path / "run"), strike(signal.SIGUSR1))) == -signal.SIGUSR1


@pytest.mark.parametrize("number", ["", "7;rm", "7_", "--help", "٣"])
def test_what_is_no_number_of_a_job_is_none(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", number)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert (slurm.job(), slurm.restarts(), slurm.warnings()) == (None, 0, ())
