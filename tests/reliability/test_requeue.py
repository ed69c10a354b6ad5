"""Fault 11: SLURM takes the machine away and runs the job again. `scontrol` is a script that writes down what it was asked."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalearn import cli, slurm
from metalearn.engine.checkpoint import CheckpointStore
from tests.reliability import harness
from tests.reliability.harness import assert_same_end, finish, train
from tests.reliability.test_lock_and_signals import struck

ALONE, ARRAY = {"SLURM_JOB_ID": "77"}, {"SLURM_JOB_ID": "80", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}


def within_job(folder: Path, job: dict[str, str], work: Callable[[], int], *, answer: str = "exit 0") -> Callable[[], int]:
    """The work of a process of this job, with a `scontrol` that writes its words to folder/asked and gives this answer."""
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
    """No folder is named: the command alone finds it. SIGTERM comes a moment later, as from SLURM, and is no second signal."""
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
    assert harness.status(run_dir) == {**harness.status(run_dir), "status": "preempted", "exit_code": 143, "restarts": 0}
    assert CheckpointStore(run_dir).pointed("last") == 4
    assert "stopped by SIGUSR1; continue with: metalearn resume" in log(run_dir)
    assert f"SLURM will run job {number} again, which goes on with this run" in log(run_dir)
    again = {**job, "SLURM_RESTART_COUNT": "2"}
    assert finish(within_job(tmp_path, again, command)) == 0
    assert harness.status(run_dir) == {**harness.status(run_dir), "status": "finished", "restarts": 2}
    assert f"restart 2 of SLURM job {number}" in log(run_dir)
    assert "resuming at step 4" in log(run_dir)
    assert_same_end(run_dir, reference)
    assert finish(within_job(tmp_path, again, command)) == 0  # a job of several commands runs those that are done again too
    assert list((tmp_path / "outputs" / "protonet_glyphs").iterdir()) == [run_dir]


@pytest.mark.fault(11)
def test_fault_11_two_ranks_are_requeued_as_one_run(cache: Path, tmp_path: Path) -> None:
    """SLURM's signal reaches every process of the job. The run has a folder of its own name."""
    run_dir = tmp_path / "run"
    words = ["train", *harness.TINY, *harness.QUICK, "device.ranks=2", f"data.cache_dir={cache}", f"run_dir={run_dir}"]

    def all_of_them() -> None:
        for process in (*children(os.getpid()), os.getpid()):
            os.kill(process, signal.SIGUSR1)

    work = harness.forking_ranks(lambda: cli.main(words))
    assert finish(within_job(tmp_path, ALONE, struck(work, all_of_them))) == 143
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert finish(within_job(tmp_path, ALONE, work)) == 2  # another job, or the same one by hand, is told to resume
    assert finish(within_job(tmp_path, {**ALONE, "SLURM_RESTART_COUNT": "1"}, work)) == 0
    assert harness.status(run_dir) == {**harness.status(run_dir), "status": "finished", "restarts": 1}


def children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.fault(11)
def test_fault_11_a_job_killed_without_a_word_goes_on_too(cache: Path, reference: Path, tmp_path: Path) -> None:
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
    words = ["train", *harness.TINY, *harness.QUICK, "seed=7", f"data.cache_dir={cache}", f"run_dir={run_dir}"]
    capfd.readouterr()
    assert finish(within_job(tmp_path, {**ALONE, "SLURM_RESTART_COUNT": "1"}, lambda: cli.main(words))) == 2
    said = capfd.readouterr().err
    assert f"{run_dir} holds another run, which restart 1 of SLURM job 77 may not go on with; choose another run_dir" in said
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


def test_what_scontrol_says_against_it_is_passed_on(cfg: dict[str, Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    work = struck(train(cfg, run_dir), strike(signal.SIGUSR1))
    refusal = "echo 'Requested operation is presently disabled' >&2; exit 1"
    assert finish(within_job(tmp_path, ALONE, work, answer=refusal)) == 143
    sentence = "scontrol requeue 77 failed: Requested operation is presently disabled; the run has to be continued by hand"
    assert f"warning: {sentence}" in log(run_dir)


def test_a_machine_without_scontrol_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    told: list[str] = []
    slurm.requeue(told.append)
    assert told == [
        "warning: scontrol requeue 77 failed: [Errno 2] No such file or directory: 'scontrol'; the run has to be continued by hand"
    ]


def test_scancel_and_other_signals_requeue_nothing(cfg: dict[str, Any], tmp_path: Path) -> None:
    assert finish(within_job(tmp_path, ALONE, struck(train(cfg, tmp_path / "job"), strike(signal.SIGTERM)))) == 143
    assert harness.status(tmp_path / "job")["status"] == "preempted"
    assert not (tmp_path / "asked").exists()
    # Outside SLURM the warning keeps its usual meaning, which is to end the process.
    assert finish(struck(train(cfg, tmp_path / "run"), strike(signal.SIGUSR1))) == -signal.SIGUSR1


@pytest.mark.parametrize("number", ["", "7;rm", "7_", "--help", "٣"])
def test_what_is_no_number_of_a_job_is_none(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", number)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert (slurm.job(), slurm.restarts(), slurm.warnings()) == (None, 0, ())
