"""A run of two ranks, each a real process: what the command line starts, and what is left when one of them
goes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalearn.distributed import processes
from metalearn.distributed.strategy import RankError
from metalearn.run.evaluate import evaluate_run
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability import harness
from tests.reliability.harness import (
    KILLED,
    assert_same_end,
    finish,
    forking_ranks,
    resume,
    start,
    struck,
    train,
    wait,
)

WORDS = [*harness.QUICK, "trainer.meta_batch_size=3"]  # no multiple of the number of ranks
EVALUATION = ["eval.episodes=11", "eval.chunk=2", "eval.checkpoint=last"]
# Classes of a person's own, which go wrong at the last task of step 3: it is not one of rank 0's.
SPOILED = """
import torch
from metalearn.algorithms.protonet import ProtoNet
from metalearn.data.glyphs import Glyphs
from metalearn.data.sampling import task_keys

class Infinite(Glyphs):
    def tasks(self, split, *, seed, first, count):
        tasks = super().tasks(split, seed=seed, first=first, count=count)
        bad = (torch.arange(first, first + count) == 11) & (split == "train")
        x = torch.where(bad[:, None, None, None, None], torch.inf, tasks.support.x)
        return tasks._replace(support=tasks.support._replace(x=x))

class Raising(ProtoNet):
    def gradient(self, params, tasks, how):
        if (tasks.key == task_keys(0, "train", first=11, count=1, device=tasks.key.device)).any():
            raise LookupError("task 11 is lost")
        return super().gradient(params, tasks, how)
"""


@pytest.fixture(scope="module")
def alone(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    assert finish(train(harness.configuration(cache, *WORDS), run_dir)) == 0
    return run_dir


@pytest.fixture(scope="module")
def cfg(cache: Path) -> dict[str, Any]:
    return harness.configuration(cache, *WORDS, "device.ranks=2")


@pytest.fixture(scope="module")
def reference(cfg: dict[str, Any], alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that was never stopped, and the evaluation by two ranks of its last weights.

    Its rank 1 comes to life as it does for a person; where tests fork theirs, it is to save the seconds of
    importing torch.
    """
    run_dir = tmp_path_factory.mktemp("ranks") / "run"
    assert finish(train(cfg, run_dir)) == 0
    assert finish(forking_ranks(lambda: evaluate_run(run_dir, EVALUATION))) == 0
    return run_dir


def children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def from_folder(folder: Path, work: Callable[[], int]) -> Callable[[], int]:
    """The work of a process that finds the spoiled classes, and in its working folder a file that must not be
    imported.
    """
    (folder / "spoiled.py").write_text(SPOILED)

    def changed() -> int:
        os.chdir(folder)
        Path("torch.py").write_text("raise ImportError('a stray file of the working folder was imported')")
        sys.path.append(str(folder))
        return work()

    return changed


def log(run_dir: Path) -> str:
    return (run_dir / "train.log").read_text()


def test_two_ranks_train_the_run_of_one_in_one_folder(
    cfg: dict[str, Any], alone: Path, reference: Path
) -> None:
    assert "2 ranks of 1 thread each" in log(reference)
    assert {path.name for path in reference.iterdir()} == {path.name for path in alone.iterdir()} | {"evals"}
    found, expected = harness.metrics(reference), harness.metrics(alone)
    assert [(line["step"], line["split"]) for line in found] == [
        (line["step"], line["split"]) for line in expected
    ]
    for line, wanted in zip(found, expected, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], abs=1e-4)
    assert CheckpointStore(reference).pointed("best") == CheckpointStore(alone).pointed("best")


def test_evaluation_by_two_ranks_equals_that_by_one_bit_for_bit(reference: Path) -> None:
    [shared] = (reference / "evals").iterdir()
    assert finish(lambda: evaluate_run(reference, [*EVALUATION, "device.ranks=1"])) == 0
    [single] = set((reference / "evals").iterdir()) - {shared}
    for name in ("eval_test.csv", "results.json"):
        assert (shared / name).read_bytes() == (single / name).read_bytes()


@pytest.mark.fault(14)
def test_rank_that_never_comes_ends_the_run(
    cfg: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def patient() -> int:
        processes.GRACE = 1e9
        return train(cfg, tmp_path / "run")()

    assert finish(forking_ranks(patient), fault="rank:start") == 1
    assert "rank 1 of 2 was ended by SIGKILL" in capfd.readouterr().err


@pytest.mark.fault(14)
def test_rank_that_is_killed_ends_the_run_which_resumes_to_the_same_bits(
    cfg: dict[str, Any], reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir, began = tmp_path / "run", time.monotonic()
    assert finish(forking_ranks(train(cfg, run_dir)), fault="rank:step@3") == 1
    assert time.monotonic() - began < 60
    sentence = (
        "rank 1 of 2 was ended by SIGKILL, as by the system when memory runs out; the other ranks "
        "hold nothing"
    )
    errors = capfd.readouterr().err
    assert sentence in errors
    assert "Traceback" not in errors
    assert sentence in log(run_dir)
    assert harness.status(run_dir) == {**harness.status(run_dir), "status": "failed", "exit_code": 1}
    assert finish(forking_ranks(resume(run_dir))) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(14)
def test_traceback_of_a_rank_stands_in_the_log(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    broken = harness.configuration(
        cache, *WORDS, "device.ranks=2", "algo._target_=spoiled.Raising", "trusted=[spoiled]"
    )
    assert finish(from_folder(tmp_path, train(broken, run_dir))) == 1
    errors = capfd.readouterr().err
    assert "rank 1 of 2 ended with exit code 1: LookupError: task 11 is lost" in errors
    assert "Traceback" not in errors
    assert "Traceback (most recent call last):" in log(run_dir)
    assert 'raise LookupError("task 11 is lost")' in log(run_dir)


@pytest.mark.fault(13)
def test_what_is_not_finite_on_another_rank_stops_the_run_at_its_step(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sentences = []
    for ranks in (1, 2):
        run_dir = tmp_path / f"run_{ranks}"
        words = [*WORDS, f"device.ranks={ranks}", "data._target_=spoiled.Infinite", "trusted=[spoiled]"]
        infinite = harness.configuration(cache, *words)
        assert finish(forking_ranks(from_folder(tmp_path, train(infinite, run_dir)))) == 1
        [sentence] = [line for line in capfd.readouterr().err.splitlines() if "is not finite" in line]
        sentences.append(sentence.replace(str(run_dir), "RUN_DIR"))
        assert CheckpointStore(run_dir).newest().step == 3
    assert sentences[0] == sentences[1]
    assert "at step 3 (counted from 0), train task 11" in sentences[0]


@pytest.mark.slow
@pytest.mark.fault(1)
def test_ranks_end_with_a_run_that_is_killed_and_do_not_hold_its_lock(
    cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    """Even one that hangs, which notices nothing."""
    run_dir = tmp_path / "run"
    child = start(struck(train(cfg, run_dir), lambda: os.kill(os.getpid(), signal.SIGSTOP), step=4))
    os.waitpid(child, os.WUNTRACED)
    [rank] = children(child)
    held = [os.readlink(entry) for entry in Path(f"/proc/{rank}/fd").iterdir() if entry.exists()]
    os.kill(rank, signal.SIGSTOP)
    os.kill(child, signal.SIGKILL)
    assert wait(child) == KILLED
    assert not [name for name in held if name.startswith(str(run_dir))]
    began = time.monotonic()
    again = start(forking_ranks(resume(run_dir)))
    while Path(f"/proc/{rank}").exists() and time.monotonic() - began < 5:
        time.sleep(0.01)
    outlived = Path(f"/proc/{rank}").exists()
    if outlived:
        os.kill(rank, signal.SIGKILL)
    assert wait(again) == 0
    assert not outlived
    assert_same_end(run_dir, reference)


@pytest.mark.parametrize("platform", ["linux", "elsewhere"])
def test_process_ends_with_its_parent_on_every_platform(platform: str, tmp_path: Path) -> None:
    child = (
        f"import os, sys, time; sys.platform = {platform!r}; from metalearn.distributed.entry import "
        "end_with; end_with(os.getppid()); "
    )
    child += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    parent = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    began = time.monotonic()
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    pid = int((tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    began = time.monotonic()
    while Path(f"/proc/{pid}").exists() and time.monotonic() - began < 5:
        time.sleep(0.01)
    outlived = Path(f"/proc/{pid}").exists()
    if outlived:
        os.kill(pid, signal.SIGKILL)
    assert not outlived


@pytest.mark.fault(9)
def test_signal_to_all_processes_saves_and_resumes_to_the_same_bits(
    cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"

    def strike() -> None:
        for process in (*children(os.getpid()), os.getpid()):
            os.kill(process, signal.SIGTERM)

    assert finish(forking_ranks(struck(train(cfg, run_dir), strike))) == 143
    assert harness.status(run_dir)["status"] == "preempted"
    assert CheckpointStore(run_dir).pointed("last") == 4
    assert finish(forking_ranks(resume(run_dir))) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(14)
def test_run_that_does_not_notice_a_lost_rank_is_ended(tmp_path: Path) -> None:
    """As when the main thread waits for a GPU, which waits for another."""

    def hang() -> int:
        processes.WATCH_EVERY, processes.GRACE = 0.05, 0.2
        processes.PROGRAM = "import sys; sys.exit('a word')"
        with processes.Workers(
            2, tmp_path / "store", [], lambda error: (tmp_path / "last_word").write_text(str(error))
        ):
            time.sleep(60)
        return 0

    began = time.monotonic()
    assert finish(hang) == RankError.exit_code
    assert time.monotonic() - began < 30
    assert (tmp_path / "last_word").read_text().startswith("rank 1 of 2 ended with exit code 1: a word")


@pytest.mark.slow
def test_torchrun_starts_the_same_run(cache: Path, reference: Path, tmp_path: Path) -> None:
    words = [*harness.TINY, *WORDS, f"data.cache_dir={cache}", f"run_dir={tmp_path / 'run'}"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "metalearn",
        "train",
    ]
    done = subprocess.run([*torchrun, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1
    assert (tmp_path / "run" / "plots" / "episodes.png").exists()
    assert_same_end(tmp_path / "run", reference)
