"""Faults 8, 22, 23 and 24, each as a person would meet it: whole commands in processes of their own."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalearn.cli import main as cli
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability import harness
from tests.reliability.harness import KILLED, finish, resume, start, struck, train, wait

COMMAND = [sys.executable, "-m", "metalearn"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def answer(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False
    )


# --- 8: a run folder that cannot be one
# ------------------------------------------------------------------------------


def is_a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file"


def is_below_a_file(folder: Path) -> Path:
    return is_a_file(folder) / "run"


def is_of_the_system(folder: Path) -> Path:
    return Path("/proc/metalearn/run")  # not even root may make it


def is_read_only(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the other places stop root too")
    (folder / "locked").mkdir(mode=0o500)
    return folder / "locked" / "run"


@pytest.mark.parametrize("place", [is_a_file, is_below_a_file, is_of_the_system, is_read_only])
def test_fault_08_a_place_that_cannot_hold_a_run_stops_it_before_training(
    place: Callable[[Path], Path], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = place(tmp_path)
    words = [*harness.TINY, *harness.QUICK, f"data.cache_dir={cache}", f"run_dir={run_dir}"]
    assert cli.main(["train", *words]) == 2
    shown, complaint = capsys.readouterr()
    assert complaint.startswith(f"error: run_dir={run_dir} cannot be written: ")
    assert complaint.endswith("choose another run_dir\n")
    assert complaint.count("\n") == 1
    assert all(line.startswith("preparing ") for line in shown.splitlines())  # of a cache that was empty
    assert not (tmp_path / "file").exists() or (tmp_path / "file").read_text() == "mine"


# --- 22: two processes, one run folder
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["train", "resume"])
def test_fault_22_the_second_process_is_refused_and_told_the_first_one_s_number(
    second: str, cfg: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    child = start(struck(train(cfg, run_dir), lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    os.waitpid(child, os.WUNTRACED)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert finish(resume(run_dir) if second == "resume" else train(cfg, run_dir)) == 2
    complaint = capfd.readouterr().err
    assert f"is in use by process {child}" in complaint or (
        second == "train" and "already holds a run" in complaint
    )
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    os.kill(child, signal.SIGCONT)
    assert wait(child) == 0


def test_fault_22_the_lock_of_a_dead_process_is_taken_over(cfg: dict[str, Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    child = start(struck(train(cfg, run_dir), lambda: os.kill(os.getpid(), signal.SIGKILL), step=4))
    assert wait(child) == KILLED
    assert (run_dir / ".lock").read_text() == f"{child}\n"
    assert finish(resume(run_dir)) == 0
    assert harness.status(run_dir)["status"] == "finished"


def test_fault_22_a_lock_is_held_by_the_process_not_by_its_file(reference: Path, tmp_path: Path) -> None:
    """A number in the file proves nothing: it may be that of another program by now."""
    run_dir = Path(shutil.copytree(reference, tmp_path / "run"))
    (run_dir / ".lock").write_text(f"{os.getppid()}\n")
    assert finish(resume(run_dir, "trainer.outer_steps=8")) == 0
    with (run_dir / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert finish(resume(run_dir, "trainer.outer_steps=10")) == 2


# --- 23: bad numbers
# -------------------------------------------------------------------------------------------------

MISTAKES = {
    "data.way=-3": "data.way=-3 must be at least 2",
    "data.shot=0": "data.shot=0 must be at least 1",
    "algo.inner_lr=abc": "algo.inner_lr=abc is not a number (default: 0.4)",
    "algo.iner_lr=1": "algo.iner_lr is not a key; did you mean algo.inner_lr?",
    "trainer.epochs=3": "trainer.epochs is not a key; did you mean trainer.outer_steps?",
    "optimizer=adamm": "optimizer=adamm does not exist; did you mean optimizer=adam?",
}


def test_fault_23_bad_numbers_are_told_together_and_soon(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = answer("train", *MISTAKES, f"run_dir={tmp_path}/run")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    for sentence in MISTAKES.values():
        assert any(sentence in line for line in lines), sentence
    assert len(lines) == len(MISTAKES)
    assert not (tmp_path / "run").exists()
    # Processor time, since this machine may be busy with other things.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_fault_23_more_ways_than_classes_is_found_before_training(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*harness.TINY, f"data.cache_dir={cache}", "data.way=40", f"run_dir={tmp_path}/run"]
    assert cli.main(["train", *words]) == 2
    complaint = capsys.readouterr().err
    assert "data.way=40 but split " in complaint
    assert "lower data.way or give the split more classes" in complaint
    assert not (tmp_path / "run").exists()


# --- 24: a reader that leaves
# ----------------------------------------------------------------------------------------


def test_fault_24_a_reader_that_leaves_does_not_stop_a_run(cache: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [*harness.TINY, *harness.QUICK, f"data.cache_dir={cache}", f"run_dir={run_dir}"]
    script = '"$@" | head -1; exit ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, "train", *words],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert harness.status(run_dir)["status"] == "finished"
    assert json.loads((run_dir / "results.json").read_text())["episodes"] == 6
    assert "run folder: " in (run_dir / "train.log").read_text()


@pytest.mark.slow
def test_fault_24_neither_does_a_terminal_that_is_closed(cache: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [*harness.TINY, *harness.QUICK, f"data.cache_dir={cache}", f"run_dir={run_dir}"]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&- 2>&-', "sh", *COMMAND, "train", *words],
        env=ENVIRONMENT,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0
    assert CheckpointStore(run_dir).pointed("last") == 6
