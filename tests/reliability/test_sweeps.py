"""A sweep that is killed, stopped, shared or unlucky, and given again, ends as if nothing had happened. Real
processes.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metalearn.cli import main as cli
from metalearn.engine import trainer
from metalearn.errors import InUseError
from metalearn.rundir.lock import take_lock
from metalearn.rundir.log import RunLog
from tests.reliability import harness
from tests.reliability.conftest import SEEDS
from tests.reliability.harness import assert_same_end, finish, start, wait


def words(cache: Path, *more: str) -> list[str]:
    return [
        "train",
        "-m",
        "sweep=kept",
        "seed=0,1,2",
        *harness.TINY,
        *harness.QUICK,
        f"data.cache_dir={cache}",
        *more,
    ]


def command(folder: Path, *given: str) -> Callable[[], int]:
    """`metalearn …` in a folder."""

    def work() -> int:
        os.chdir(folder)
        return cli.main(list(given))

    return work


def jobs(folder: Path) -> dict[int, Path]:
    """The run folders of the sweep, by seed."""
    return {
        int(path.name.split("_")[0].removeprefix("seed-")): path
        for path in (folder / "outputs/sweeps/kept").glob("seed-*")
    }


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "outputs/sweeps/kept/sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_as_alone(folder: Path, alone: dict[int, Path]) -> None:
    assert [row["status"] for row in rows(folder)] == ["finished"] * len(alone)
    assert jobs(folder).keys() == alone.keys()
    for seed, run_dir in jobs(folder).items():
        assert_same_end(run_dir, alone[seed])


@pytest.mark.fault(26)
@pytest.mark.parametrize("place", ["start:config@2", "save:before_rename@2", "end:before_results"])
def test_killed_at_an_awkward_moment(place: str, cache: Path, alone: dict[int, Path], tmp_path: Path) -> None:
    assert finish(command(tmp_path, *words(cache)), place) == harness.KILLED
    assert finish(command(tmp_path, *words(cache))) == 0
    assert_as_alone(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.fault(26)
def test_half_begun_folders_are_begun_again(cache: Path, alone: dict[int, Path], tmp_path: Path) -> None:
    """What a kill can leave before config.yaml makes a folder a run, or while a refused run is taken back."""
    assert finish(command(tmp_path, *words(cache), "trainer.dry_run=true")) == 0
    assert not (tmp_path / "outputs/sweeps/kept").exists()
    assert finish(command(tmp_path, *words(cache)), "start:config") == harness.KILLED
    leave = (
        ["overrides.yaml", ".lock"],
        ["overrides.yaml", "config.yaml.tmp"],
        ["status.json", "train.log", "env.json"],
    )
    for run_dir, names in zip(jobs(tmp_path).values(), leave, strict=True):
        for path in run_dir.iterdir():
            path.unlink()
        for name in names:
            (run_dir / name).write_text('{"status": "running"}' if name == "status.json" else "[]")
    assert finish(command(tmp_path, *words(cache))) == 0
    assert_as_alone(tmp_path, alone)


def struck(work: Callable[[], int], action: Callable[[], object]) -> Callable[[], int]:
    """The work, with something happening to its process at the beginning of an outer step of the first
    job.
    """
    once = iter([action])
    return harness.struck(work, lambda: next(once, lambda: None)())


@pytest.mark.fault(9, 26)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_present_job_cleanly_and_says_how_to_go_on(
    number: signal.Signals,
    cache: Path,
    alone: dict[int, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert (
        finish(struck(command(tmp_path, *words(cache)), lambda: os.kill(os.getpid(), number))) == 128 + number
    )
    said = capfd.readouterr().out
    assert (
        "stopped with 3 of 3 jobs not finished; go on with:\n  metalearn train -m sweep=kept seed=0,1,2 "
        in said
    )
    assert [row["status"] for row in rows(tmp_path)] == ["preempted", "not started", "not started"]
    assert not list((tmp_path / "outputs/sweeps/kept").glob(".stop-*"))
    assert finish(command(tmp_path, *words(cache))) == 0
    assert "job 1 of 3 goes on: seed=0" in capfd.readouterr().out
    assert_as_alone(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.fault(9)
def test_a_signal_between_two_jobs_is_not_lost(cache: Path, tmp_path: Path) -> None:
    def interrupted() -> int:
        from metalearn.sweep import jobs as sweep_jobs
        from metalearn.sweep import launching

        usual_room, usual_step = launching.make_room, trainer.Trainer.train_step

        def train_slowly(self: trainer.Trainer) -> None:
            time.sleep(0.05)
            usual_step(self)

        def make_room(job: sweep_jobs.Job) -> None:
            if job.number == 2:  # the run does not listen yet
                os.kill(os.getpid(), signal.SIGINT)
                trainer.Trainer.train_step = train_slowly  # type: ignore[method-assign]
            usual_room(job)

        launching.make_room = make_room
        long = [f"trainer.{key}=200" for key in ("outer_steps", "eval_every", "checkpoint_every")]
        return command(tmp_path, *words(cache), *long)()

    assert finish(interrupted) == 130
    assert [row["status"] for row in rows(tmp_path)] == ["finished", "preempted", "not started"]


@pytest.mark.fault(26)
def test_a_job_that_fails_takes_no_other_with_it_and_waits_to_be_retried(
    cache: Path, alone: dict[int, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def unlucky() -> int:
        usual = RunLog.write_csv

        def write_csv(self: RunLog, name: str, columns: dict[str, list[object]]) -> None:
            if self.run_dir.name.startswith("seed-1"):
                raise OSError("the disk is on fire")
            usual(self, name, columns)

        RunLog.write_csv = write_csv  # type: ignore[method-assign]
        return command(tmp_path, *words(cache))()

    assert finish(unlucky) == 1
    assert [(row["status"], row["reason"]) for row in rows(tmp_path)] == [
        ("finished", ""),
        ("failed", "OSError: the disk is on fire"),
        ("finished", ""),
    ]
    said = capfd.readouterr()
    assert (
        f"failed: {Path('outputs/sweeps/kept') / jobs(tmp_path)[1].name}: OSError: the disk is on fire"
        in said.out
    )
    assert "Traceback" not in said.out + said.err
    assert finish(command(tmp_path, *words(cache))) == 1
    said = capfd.readouterr()
    assert (
        f"{jobs(tmp_path)[1].name}: failed earlier, left alone (OSError: the disk is on fire); "
        "--retry-failed runs it again" in said.out
    )
    assert "3 jobs in outputs/sweeps/kept, 0 to run" in said.out
    assert finish(command(tmp_path, *words(cache), "--retry-failed")) == 0
    assert_as_alone(tmp_path, alone)


@pytest.mark.fault(22)
def test_two_processes_share_a_sweep(
    cache: Path, alone: dict[int, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = start(struck(command(tmp_path, *words(cache)), lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    os.waitpid(first, os.WUNTRACED)
    capfd.readouterr()
    assert finish(command(tmp_path, *words(cache))) == 0
    said = capfd.readouterr().out
    assert f"{jobs(tmp_path)[0].name}: running in process {first}, skipped" in said
    assert [(row["status"], row["reason"]) for row in rows(tmp_path)] == [
        ("running", f"process {first}"),
        ("finished", ""),
        ("finished", ""),
    ]
    os.kill(first, signal.SIGCONT)
    assert wait(first) == 0
    said = capfd.readouterr().out
    assert all(f"{jobs(tmp_path)[seed].name}: finished, skipped" in said for seed in (1, 2))
    assert_as_alone(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.fault(22)
def test_two_processes_that_begin_at_once_do_every_job_once(
    cache: Path, alone: dict[int, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    children = [start(command(tmp_path, *words(cache))) for _ in range(2)]
    assert [wait(child) for child in children] == [0, 0]
    assert_as_alone(tmp_path, alone)
    assert capfd.readouterr().out.count("run folder: ") == 3


def test_a_lock_that_somebody_only_looks_at_is_waited_for(tmp_path: Path) -> None:
    import fcntl
    import threading

    with (tmp_path / ".lock").open("a+") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        timer = threading.Timer(0.06, lambda: fcntl.flock(looked_at, fcntl.LOCK_UN))
        timer.start()
        take_lock(tmp_path).close()
        timer.join()


def test_a_lock_whose_file_was_taken_away_is_no_lock(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        (tmp_path / ".lock").unlink()  # as a run that never began leaves its folder
        with (
            RunLog(tmp_path),
            pytest.raises(InUseError, match=f"in use by process {os.getpid()}"),
            RunLog(tmp_path),
        ):
            pass
        assert log.run_dir == tmp_path


joblib = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None
    if importlib.util.find_spec("hydra_plugins")
    else True,
    reason="hydra-joblib-launcher is not installed; pip install 'metalearn-runner[joblib]'",
)
SIDE_BY_SIDE = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def real(folder: Path, *given: str) -> subprocess.Popen[str]:
    """The command in a process and a group of its own, as on a terminal."""
    program = [sys.executable, "-m", "metalearn", *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        program, cwd=folder, env=environment, text=True, start_new_session=True, **streams
    )  # type: ignore[call-overload]


@joblib
def test_joblib_runs_jobs_side_by_side_with_the_same_results(
    cache: Path, alone: dict[int, Path], tmp_path: Path
) -> None:
    process = real(tmp_path, *words(cache, *SIDE_BY_SIDE))
    said, errors = process.communicate(timeout=250)
    assert process.returncode == 0, said + errors
    assert "Traceback" not in errors
    assert_as_alone(tmp_path, alone)
    assert all(f"job {seed + 1} of 3 finished: seed={seed}" in said for seed in SEEDS)
    pids = [json.loads((run_dir / "status.json").read_text())["pid"] for run_dir in jobs(tmp_path).values()]
    assert process.pid not in pids
    assert len(set(pids)) == 2


@joblib
@pytest.mark.slow
@pytest.mark.parametrize("whom", ["group", "process"])
def test_joblib_jobs_hear_a_signal_wherever_it_was_sent(whom: str, cache: Path, tmp_path: Path) -> None:
    process = real(tmp_path, *words(cache, *SIDE_BY_SIDE, "trainer.outer_steps=1000000"))
    deadline = time.monotonic() + 200
    while len(list((tmp_path / "outputs/sweeps/kept").glob("*/checkpoints/last"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    (os.killpg if whom == "group" else os.kill)(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=100)
    assert process.returncode == 130, said + errors
    assert sorted(row["status"] for row in rows(tmp_path)) == ["not started", "preempted", "preempted"]
    assert "go on with:" in said
