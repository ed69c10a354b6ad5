"""Faults 12 and 13: a loss or gradient that is not finite, in one task or all, on one rank or two, and what
trainer.on_nan makes of it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from metalearn.engine import trainer
from metalearn.engine.nonfinite import MOST_IN_A_ROW, MOST_ROLLBACKS
from metalearn.rundir.checkpoint_files import METADATA
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability import harness
from tests.reliability.harness import KILLED, assert_same_end, finish, forking_ranks, resume, train

# Two tasks a step. Checkpoints at 0, 3, 6 and 9, since no validation comes between.
WORDS = ["trainer.outer_steps=9", "trainer.eval_every=9", "trusted=[spoiled]"]
MAML = ["algo=maml", "algo.adaptation_steps=1", "algo.eval_adaptation_steps=1"]
SPOILED = """
import torch
from metalearn.algorithms.maml import MAML
from metalearn.data.glyphs import Glyphs
from metalearn.data.sampling import task_keys

BAD = {bad}

class Infinite(Glyphs):
    def tasks(self, split, *, seed, first, count):
        tasks = super().tasks(split, seed=seed, first=first, count=count)
        bad = torch.tensor([number in BAD for number in range(first, first + count)]) & (split == "train")
        x = torch.where(bad[:, None, None, None, None], torch.inf, tasks.support.x)
        return tasks._replace(support=tasks.support._replace(x=x))

class Steep(MAML):
    def gradient(self, params, tasks, how):
        grads, losses, metrics = super().gradient(params, tasks, how)
        device = tasks.key.device
        keys = torch.cat([task_keys(0, "train", first=n, count=1, device=device) for n in BAD])
        bad = torch.isin(tasks.key, keys).any()
        return {{name: torch.where(bad, torch.nan, grad) for name, grad in grads.items()}}, losses, metrics
"""
STEEP, INFINITE = "algo._target_=spoiled.Steep", "data._target_=spoiled.Infinite"


def spoiled(cache: Path, *words: str) -> dict[str, Any]:
    return harness.configuration(cache, *(() if "algo=maml" in words else harness.QUICK), *WORDS, *words)


def bad(tasks: Collection[int], folder: Path, work: Callable[[], int]) -> Callable[[], int]:
    """The work of a process for which these train tasks are bad."""
    folder.mkdir(exist_ok=True)
    (folder / "spoiled.py").write_text(SPOILED.format(bad=sorted(tasks)))

    def changed() -> int:
        os.chdir(folder)
        sys.path.append(str(folder))
        return forking_ranks(work)()

    return changed


def warnings(run_dir: Path) -> list[str]:
    """What the log says of non-finite steps, without times and places."""
    lines = (run_dir / "train.log").read_text().splitlines()
    return [
        line.partition(" ")[2].partition(" ")[2].replace(str(run_dir), "RUN_DIR")
        for line in lines
        if "is not finite" in line
    ]


# --- skip
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault(12)
@pytest.mark.parametrize(
    ("target", "what"), [(INFINITE, "train task 11,"), (STEEP, "train task 11,")], ids=["loss", "gradient"]
)
def test_fault_12_skip_leaves_the_update_out_and_says_so(
    target: str, what: str, cache: Path, tmp_path: Path
) -> None:
    cfg, run_dir = (
        spoiled(cache, *MAML, "trainer.on_nan=skip", "trainer.log_every=3", target),
        tmp_path / "run",
    )
    assert finish(bad([11], tmp_path, train(cfg, run_dir))) == 0
    [warning] = warnings(run_dir)
    assert (
        f"at step 5 (counted from 0), {what} algo.inner_lr=0.4. The weights were not changed by it" in warning
    )
    assert (
        "last good checkpoint: RUN_DIR/checkpoints/step-000003; left out 1 of 6 updates so far "
        "(trainer.on_nan=skip)" in warning
    )
    assert (
        "warning: 1 of 9 updates were left out, as their loss or gradient was not finite"
        in (run_dir / "train.log").read_text()
    )
    lines = [line for line in harness.metrics(run_dir) if line["split"] == "train"]
    assert [(line["step"], line["left_out"]) for line in lines] == [(3, 0), (6, 1), (9, 0)]
    assert all(line["loss"] is not None and line["gradient_norm"] is not None for line in lines)
    store = CheckpointStore(run_dir)
    assert [store.load(9).metadata[name] for name in ("refused", "refused_row")] == [1, 0]


@pytest.mark.fault(13)
@pytest.mark.parametrize(("on_nan", "ranks"), [("skip", 1), ("rollback", 1), ("rollback", 2)])
def test_fault_13_what_was_left_out_survives_kills(
    on_nan: str, ranks: int, cache: Path, tmp_path: Path
) -> None:
    """Step 4 is bad. Killed at step 5 or 3, before the next save, and again after it."""
    cfg, run_dir, whole = (
        spoiled(cache, f"trainer.on_nan={on_nan}", f"device.ranks={ranks}", INFINITE),
        tmp_path / "run",
        tmp_path / "whole",
    )
    assert finish(bad([9], tmp_path, train(cfg, whole))) == 0
    first, second = ("step:end@6", "step:end@5") if on_nan == "skip" else ("step:end@5", "step:end@6")
    assert finish(bad([9], tmp_path, train(cfg, run_dir)), fault=first) == KILLED
    assert CheckpointStore(run_dir).pointed("last") == 3
    assert finish(
        bad([9], tmp_path, resume(run_dir, "trusted=[spoiled]")), fault=second if ranks == 1 else None
    ) == (KILLED if ranks == 1 else 0)
    if ranks == 1:
        assert CheckpointStore(run_dir).pointed("last") == 6
        assert finish(bad([9], tmp_path, resume(run_dir, "trusted=[spoiled]"))) == 0
    assert_same_end(run_dir, whole)
    facts = CheckpointStore(whole).load(9).metadata
    expected = {"skip": (1, 0, 0), "rollback": (0, 2, 1)}[on_nan]
    assert tuple(facts[name] for name in ("refused", "shift", "rollbacks")) == expected


@pytest.mark.fault(13)
def test_fault_13_two_ranks_decide_as_one_whether_one_of_them_is_bad_or_both(
    cache: Path, tmp_path: Path
) -> None:
    told = []
    for ranks in (1, 2):
        cfg, run_dir = (
            spoiled(cache, "trainer.on_nan=skip", f"device.ranks={ranks}", INFINITE),
            tmp_path / f"run_{ranks}",
        )
        assert finish(bad([3, 8, 9, 12], tmp_path, train(cfg, run_dir))) == 0
        told.append(warnings(run_dir))
    assert told[0] == told[1]
    assert [
        f"train {what}. The weights" in line
        for what, line in zip(("task 3", "tasks 8, 9", "task 12"), told[0], strict=True)
    ] == [True] * 3


def test_skip_ends_the_run_after_so_many_in_a_row_even_across_a_stop(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tasks = range(4, 100)
    cfg, run_dir = (
        spoiled(cache, "trainer.on_nan=skip", "trainer.outer_steps=20", "trainer.eval_every=20", INFINITE),
        tmp_path / "run",
    )
    assert finish(bad(tasks, tmp_path, train(cfg, run_dir)), fault="step:end@7") == KILLED
    assert finish(bad(tasks, tmp_path, resume(run_dir, "trusted=[spoiled]"))) == 1
    errors = capfd.readouterr().err
    assert f"at step {1 + MOST_IN_A_ROW} (counted from 0), train tasks 22, 23. The weights" in errors
    assert f"The {MOST_IN_A_ROW} updates up to this one were all like that. Lower algo.inner_lr" in errors
    assert "Traceback" not in errors
    assert CheckpointStore(run_dir).newest().step == 9
    assert harness.status(run_dir) == {**harness.status(run_dir), "status": "failed", "exit_code": 1}


# --- rollback
# --------------------------------------------------------------------------------------------------------


@pytest.mark.fault(12)
def test_fault_12_rollback_says_where_it_went_and_what_it_passes_over(cache: Path, tmp_path: Path) -> None:
    cfg, run_dir = spoiled(cache, *MAML, "trainer.on_nan=rollback", INFINITE), tmp_path / "run"
    assert finish(bad([11, 15], tmp_path, train(cfg, run_dir))) == 0
    first, second = warnings(run_dir)
    assert (
        "at step 5 (counted from 0), train task 11, algo.inner_lr=0.4. The weights were not changed by it"
        in first
    )
    assert (
        "rolled back to step 3 (1 of at most 3 times), meta-batches 3 to 5 (counted from 0) are passed over"
        in first
    )
    # Step 3 is meta-batch 6 now, so that 7 is met at step 4, before another checkpoint.
    assert "at step 4 (counted from 0), train task 15, algo.inner_lr=0.4" in second
    assert (
        "rolled back to step 3 (2 of at most 3 times), meta-batches 6 to 7 (counted from 0) are passed over"
        in second
    )
    assert [line["step"] for line in harness.metrics(run_dir) if line["split"] == "train"] == [4, 8, 9]
    facts = CheckpointStore(run_dir).load(9).metadata
    assert (facts["shift"], facts["rollbacks"]) == (5, 2)


def test_rollback_gives_up_after_so_many(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg, run_dir = spoiled(cache, "trainer.on_nan=rollback", INFINITE), tmp_path / "run"
    assert finish(bad(range(8, 100), tmp_path, train(cfg, run_dir))) == 1
    errors = capfd.readouterr().err
    assert f"Rolled back {MOST_ROLLBACKS} times already. Lower algo.inner_lr" in errors
    assert len(warnings(run_dir)) == MOST_ROLLBACKS + 1  # the last one is the failure
    assert CheckpointStore(run_dir).newest().step == 3


def test_rollback_passes_over_a_damaged_checkpoint(cache: Path, tmp_path: Path) -> None:
    cfg, run_dir, folder = (
        spoiled(cache, "trainer.on_nan=rollback", "trainer.keep_last=9", INFINITE),
        tmp_path / "run",
        tmp_path / "module",
    )
    assert finish(bad([9], folder, train(cfg, run_dir)), fault="step:end@4") == KILLED

    def damaged() -> int:
        usual = trainer.Trainer.train_step

        def train_step(self: trainer.Trainer) -> None:
            if self.step == 4 and self.rollbacks == 0:
                (run_dir / "checkpoints" / "step-000003" / METADATA).write_text("{}")
            usual(self)

        trainer.Trainer.train_step = train_step  # type: ignore[method-assign]
        return resume(run_dir, "trusted=[spoiled]")()

    assert finish(bad([9], folder, damaged)) == 0
    assert "rolled back to step 0 (1 of at most 3 times), meta-batches 0 to 4" in warnings(run_dir)[0]
    store = CheckpointStore(run_dir)
    assert [store.load(step).metadata["shift"] for step in store.steps()] == [
        0,
        5,
        5,
        5,
    ]  # that of step 3 was made anew


def test_a_signal_that_finds_a_bad_step_at_its_save_leaves_the_rollback_to_the_resumed_run(
    cache: Path, tmp_path: Path
) -> None:
    """As on a GPU, where the flag is read seldom: step 4 is bad, the signal comes at step 5, and only the
    save looks.
    """
    cfg, run_dir, whole = (
        spoiled(cache, "trainer.on_nan=rollback", INFINITE),
        tmp_path / "run",
        tmp_path / "whole",
    )
    assert finish(bad([9], tmp_path, train(cfg, whole))) == 0

    def seldom() -> int:
        usual, train_step = trainer.Trainer.require_finite, trainer.Trainer.train_step

        def step_unseen(self: trainer.Trainer) -> None:
            trainer.Trainer.require_finite = lambda self: None  # type: ignore[method-assign]
            train_step(self)
            trainer.Trainer.require_finite = usual  # type: ignore[method-assign]
            if self.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        trainer.Trainer.train_step = step_unseen  # type: ignore[method-assign]
        return train(cfg, run_dir)()

    assert finish(bad([9], tmp_path, seldom)) == 143
    assert harness.status(run_dir)["status"] == "preempted"
    assert CheckpointStore(run_dir).newest().step == 3
    assert finish(bad([9], tmp_path, resume(run_dir, "trusted=[spoiled]"))) == 0
    assert_same_end(run_dir, whole)


def stopped(work: Callable[[], int], step: int = 4) -> Callable[[], int]:
    """The work of a process that a signal meets during this step."""

    def strike() -> int:
        usual = trainer.Trainer.train_step

        def train_step(self: trainer.Trainer) -> None:
            if self.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            usual(self)

        trainer.Trainer.train_step = train_step  # type: ignore[method-assign]
        return work()

    return strike


@pytest.mark.parametrize(
    "place",
    [
        "rollback:before_removal",
        *(pytest.param(place, marks=pytest.mark.slow) for place in (None, "resume:after_removal@2")),
    ],
)
@pytest.mark.parametrize("keep_last", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rollback_passes_over_what_a_signal_saved_and_removes_it(
    keep_last: int, place: str | None, cache: Path, tmp_path: Path
) -> None:
    """Step 5 is bad, checkpoints are every 3 steps, and a signal comes during step 4: a run that never
    stopped has none at step 5.
    """
    words = ["trainer.on_nan=rollback", f"trainer.keep_last={keep_last}", INFINITE]
    cfg, run_dir, whole = spoiled(cache, *words), tmp_path / "run", tmp_path / "whole"
    assert finish(bad([11], tmp_path, train(cfg, whole))) == 0
    assert finish(bad([11], tmp_path, stopped(train(cfg, run_dir)))) == 143
    store = CheckpointStore(run_dir)
    assert store.steps() == [3, 5]
    assert [store.newest().step, store.newest(scheduled=True).step] == [5, 3]
    if place is not None:
        assert finish(bad([11], tmp_path, resume(run_dir, "trusted=[spoiled]")), fault=place) == KILLED
        assert store.steps() == [3]
    assert finish(bad([11], tmp_path, resume(run_dir, "trusted=[spoiled]"))) == 0
    assert (
        "rolled back to step 3 (1 of at most 3 times), meta-batches 3 to 5 (counted from 0)"
        in warnings(run_dir)[0]
    )
    assert "step-000005 is not valid" not in (run_dir / "train.log").read_text()
    kept = {path.name for path in store.folder.iterdir()}
    assert kept == {path.name for path in CheckpointStore(whole).folder.iterdir()}
    assert_same_end(run_dir, whole)


@pytest.mark.parametrize("saved", [True, False], ids=["a signal saved one", "none at all"])
def test_rollback_without_a_checkpoint_to_go_to_says_what_it_tried_and_the_way_out(
    saved: bool, cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit 4. What a signal saved is whole, though no place for a rollback: a run that skips the bad update
    goes on from there.
    """
    cfg, run_dir, folder = (
        spoiled(cache, "trainer.on_nan=rollback", INFINITE),
        tmp_path / "run",
        tmp_path / "module",
    )
    assert finish(bad([11], folder, stopped(train(cfg, run_dir), 4 if saved else 3))) == 143
    store = CheckpointStore(run_dir)

    def damaged() -> int:
        usual = trainer.Trainer.train_step

        def train_step(self: trainer.Trainer) -> None:
            for step in store.steps():
                if not (saved and step == 5):
                    (store.path(step) / METADATA).write_text("{}")
            usual(self)

        trainer.Trainer.train_step = train_step  # type: ignore[method-assign]
        return resume(run_dir, "trusted=[spoiled]")()

    capfd.readouterr()
    assert finish(bad([11], folder, damaged)) == 4
    error = capfd.readouterr().err
    assert "at step 5 (counted from 0), train task 11. The weights were not changed by it" in error
    assert "trainer.on_nan=rollback cannot go back, as there is no valid scheduled checkpoint:\n" in error
    assert f"  {store.path(3)} is not valid: metadata.json does not have the sha256" in error
    assert (f"  {store.path(5)} was saved out of turn" in error) == saved
    assert "\nRestore one from a backup, or start a new run with metalearn train" in error
    assert ("; or go on without such updates: metalearn resume RUN_DIR trainer.on_nan=skip" in error) == saved
    assert "Traceback" not in error
    assert harness.status(run_dir) == {**harness.status(run_dir), "status": "failed", "exit_code": 4}
    words = ["trusted=[spoiled]", "trainer.on_nan=skip"]
    assert finish(bad([11], folder, resume(run_dir, *words))) == (0 if saved else 4)


@pytest.mark.parametrize("on_nan", ["stop", pytest.param("rollback", marks=pytest.mark.slow)])
def test_skip_may_become_another_answer_within_a_row(on_nan: str, cache: Path, tmp_path: Path) -> None:
    """Step 5 is bad, so that the checkpoint of step 6 is within a row of one, which is the limit of the other
    answers.
    """
    cfg, run_dir, whole = (
        spoiled(cache, "trainer.on_nan=skip", INFINITE),
        tmp_path / "run",
        tmp_path / "whole",
    )
    assert finish(bad([11], tmp_path, train(cfg, whole))) == 0
    assert finish(bad([11], tmp_path, train(cfg, run_dir)), fault="step:end@7") == KILLED
    assert CheckpointStore(run_dir).newest().metadata["refused_row"] == 1
    assert finish(bad([11], tmp_path, resume(run_dir, "trusted=[spoiled]", f"trainer.on_nan={on_nan}"))) == 0
    assert not any("rolled back" in line for line in warnings(run_dir))
    for name in ("results.json", "eval_test.csv"):
        assert (run_dir / name).read_bytes() == (whole / name).read_bytes()


# --- stop
# ------------------------------------------------------------------------------------------------------------


def test_run_that_stopped_goes_on_with_skip_as_if_it_had_been_asked_to_from_the_start(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    assert finish(bad([9], tmp_path, train(spoiled(cache, INFINITE), run_dir))) == 1
    assert "metalearn resume RUN_DIR trainer.on_nan=skip" in capfd.readouterr().err
    assert finish(bad([9], tmp_path, resume(run_dir, "trusted=[spoiled]", "trainer.on_nan=skip"))) == 0
    assert finish(bad([9], tmp_path, train(spoiled(cache, INFINITE, "trainer.on_nan=skip"), whole))) == 0
    for name in ("results.json", "eval_test.csv"):
        assert (run_dir / name).read_bytes() == (whole / name).read_bytes()
