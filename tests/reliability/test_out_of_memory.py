"""Fault 15: memory runs out in the middle of a run, on the first rank or on another one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.algorithms.protonet import ProtoNet
from metalearn.engine import batching
from metalearn.run.evaluate import evaluate_run
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability import harness
from tests.reliability.harness import KILLED, assert_same_end, finish, forking_ranks, resume, train

# The allocator refuses when the first and the last task of step 1, or the last of step 0 alone, come with
# others.
HUNGRY = """
from pathlib import Path

import torch
from metalearn.algorithms.protonet import ProtoNet
from metalearn.data.sampling import task_keys

MOST, BAD = {most}, {bad}

def among(tasks, numbers):
    device = tasks.key.device
    keys = torch.cat([task_keys(0, "train", first=n, count=1, device=device) for n in numbers])
    return torch.isin(tasks.key, keys).any()

class Hungry(ProtoNet):
    def gradient(self, params, tasks, how):
        if len(tasks.key) > MOST and among(tasks, BAD):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().gradient(params, tasks, how)

class HungryOnce(Hungry):
    # Somebody else had the memory for a moment. Later, task 21 is bad.
    def gradient(self, params, tasks, how):
        try:
            grads, losses, metrics = super().gradient(params, tasks, how)
        except torch.OutOfMemoryError:
            if not Path("freed").exists():
                Path("freed").touch()
                raise
            grads, losses, metrics = ProtoNet.gradient(self, params, tasks, how)
        return grads, torch.where(among(tasks, [21]), torch.nan, losses), metrics
"""
WORDS = ["trainer.meta_batch_size=4", "algo._target_=hungry.Hungry", "trusted=[hungry]"]


def hungry(folder: Path, work: Callable[[], int], *, most: int, bad: list[int]) -> Callable[[], int]:
    """The work of a process in which these tasks fit into memory with so many others at most."""
    (folder / "hungry.py").write_text(HUNGRY.format(most=most, bad=bad))

    def changed() -> int:
        sys.path.append(str(folder))
        os.chdir(folder)
        return forking_ranks(work)()

    return changed


def configuration(cache: Path, *words: str) -> dict[str, Any]:
    return harness.configuration(cache, *harness.QUICK, *WORDS, *words)


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("ranks", "bad", "chunks"),
    [(1, [5], [2]), (2, [7], [4, 1]), (2, [4], [1, 4])],
    ids=["alone", "other-rank", "first-rank"],
)
def test_fault_15_the_chunk_is_halved_stays_so_after_a_kill_and_the_meta_batch_is_the_same(
    ranks: int, bad: list[int], chunks: list[int], cache: Path, tmp_path: Path
) -> None:
    """Memory runs out in step 1, once; the checkpoint of step 3 knows on which rank."""
    most = chunks[0] if ranks == 1 else 1
    cfg, run_dir, whole, ample = (
        configuration(cache, f"device.ranks={ranks}"),
        tmp_path / "run",
        tmp_path / "whole",
        tmp_path / "ample",
    )
    assert finish(hungry(tmp_path, train(cfg, whole), most=most, bad=bad)) == 0
    warning = (
        f"out of memory with {4 // ranks} tasks at once; going on with device.chunk={min(chunks)}, the "
        "meta-batch is the same"
    )
    assert (whole / "train.log").read_text().count(warning) == 1
    assert finish(hungry(tmp_path, train(cfg, run_dir), most=most, bad=bad), fault="step:end@5") == KILLED
    assert CheckpointStore(run_dir).newest().metadata["chunks"] == chunks
    assert finish(hungry(tmp_path, resume(run_dir, "trusted=[hungry]"), most=most, bad=bad)) == 0
    assert CheckpointStore(run_dir).newest().metadata["chunks"] == chunks
    assert_same_end(run_dir, whole)
    assert finish(hungry(tmp_path, train(cfg, ample), most=4, bad=bad)) == 0
    for line, expected in zip(harness.metrics(whole), harness.metrics(ample), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-4)


@pytest.mark.fault(15)
@pytest.mark.parametrize("bad", [16, 19], ids=["first-rank", "other-rank"])
def test_fault_15_a_rollback_gives_every_rank_the_chunk_of_its_checkpoint(
    bad: int, cache: Path, tmp_path: Path
) -> None:
    """Memory runs out in step 4 and step 5 is bad, so that both go back to step 3. Killed in step 5, the run
    meets ample memory.
    """
    words = [
        "device.ranks=2",
        "algo._target_=hungry.HungryOnce",
        "trainer.on_nan=rollback",
        "trainer.eval_every=6",
    ]
    cfg, run_dir, whole = configuration(cache, *words), tmp_path / "run", tmp_path / "whole"
    assert finish(hungry(tmp_path, train(cfg, whole), most=1, bad=[bad])) == 0
    told = (whole / "train.log").read_text()
    assert "out of memory with 2 tasks at once; going on with device.chunk=1" in told
    assert "rolled back to step 3 (1 of at most 3 times), meta-batches 3 to 5" in told
    (tmp_path / "freed").unlink()
    assert finish(hungry(tmp_path, train(cfg, run_dir), most=1, bad=[bad]), fault="step:end@7") == KILLED
    assert (tmp_path / "freed").exists()
    assert CheckpointStore(run_dir).pointed("last") == 3
    assert finish(hungry(tmp_path, resume(run_dir, "trusted=[hungry]"), most=1, bad=[bad])) == 0
    assert CheckpointStore(whole).newest().metadata["chunks"] == [4, 4]
    assert_same_end(run_dir, whole)


@pytest.mark.fault(15)
def test_fault_15_a_task_that_does_not_fit_alone_ends_the_run_in_a_sentence(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert finish(hungry(tmp_path, train(configuration(cache), run_dir), most=0, bad=[9])) == 1
    errors = capfd.readouterr().err
    assert (
        "out of memory with a single task: CUDA out of memory. Tried to allocate 2.00 GiB.; choose a smaller "
        "model" in errors
    )
    assert "Traceback" not in errors
    assert harness.status(run_dir) == {**harness.status(run_dir), "status": "failed", "exit_code": 1}
    assert CheckpointStore(run_dir).newest().step == 2


def test_chunks_of_another_plan_or_number_of_ranks_are_forgotten(cache: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    cfg = configuration(cache, "device.ranks=2")
    assert finish(hungry(tmp_path, train(cfg, run_dir), most=1, bad=[7]), fault="step:end@5") == KILLED
    words = ["trusted=[hungry]", "device.chunk=2"]
    assert finish(hungry(tmp_path, resume(run_dir, *words), most=4, bad=[7])) == 0
    assert CheckpointStore(run_dir).newest().metadata["chunks"] == [2, 2]


@pytest.fixture
def finished(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "finished"))


@pytest.mark.fault(15)
def test_fault_15_an_evaluation_of_tasks_that_do_not_fit_ends_in_a_sentence(
    finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def evaluate() -> int:
        ProtoNet.predict = lambda self, adapted, x, mask: torch.empty(2**60)  # type: ignore[assignment,method-assign]
        return evaluate_run(finished, ["eval.seed=7"])

    assert finish(evaluate) == 1
    errors = capfd.readouterr().err
    assert "out of memory with a single task: [enforce fail" in errors
    assert "; choose a smaller model, fewer rows or fewer adaptation steps" in errors
    assert not (finished / "evals" / "test_eval.seed=7").exists()


def test_results_are_the_same_bytes_whatever_number_of_tasks_is_taken_at_once(finished: Path) -> None:
    def evaluate(*words: str) -> int:
        batching.UNITS = (3, 1)
        return evaluate_run(finished, ["eval.episodes=8", *words])

    sizes: list[list[str]] = [[], *([f"eval.chunk={size}"] for size in (1, 2, 7, 50))]
    assert [finish(lambda words=words: evaluate(*words)) for words in sizes] == [0] * 5
    folders = [
        finished / "evals" / "_".join(["test", *sorted(["eval.episodes=8", *words])]) for words in sizes
    ]
    for name in ("results.json", "eval_test.csv"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
