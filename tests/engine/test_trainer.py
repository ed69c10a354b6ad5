from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.core import Batch, Examples, Metrics, Plan
from metalearn.engine import loader, nonfinite
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.history import RunningMeans, ValidationHistory
from metalearn.engine.nonfinite import NonFiniteError
from metalearn.engine.settings import Settings
from metalearn.engine.strategy import SingleProcess
from metalearn.engine.trainer import Trainer, is_time
from metalearn.engine.update import Clip, Updater
from metalearn.run import rollback
from metalearn.rundir.checkpoints import CheckpointStore, SaveError
from metalearn.rundir.log import RunLog
from tests.engine.toy import ToyAlgorithm, ToySource, eval_spec

SETTINGS = Settings(
    seed=3,
    outer_steps=6,
    meta_batch_size=4,
    batch_size=5,
    log_every=4,
    eval_every=2,
    checkpoint_every=5,
    keep_last=2,
    keep_best=1,
    patience=None,
    on_nan="stop",
    shutdown_timeout_s=120,
    dry_run=False,
)
SPEC = eval_spec("test", seed=9, episodes=10, val_episodes=8, chunk=8)


@pytest.fixture(autouse=True)
def batches_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what a step asks of the source can be read; tests/engine/test_feed.py has the blocks."""
    monkeypatch.setattr(loader, "BLOCK_BYTES", 1)


def trainer(
    log: RunLog,
    source: ToySource,
    algorithm: ToyAlgorithm | None = None,
    *,
    lr: float = 0.1,
    monitor: str | None = None,
    **changes: Any,
) -> Trainer:
    algorithm = algorithm or ToyAlgorithm()
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=lr, fused=True)
    updater = Updater(algorithm, optimizer, lambda step: 1.0, Clip()) if algorithm.trains_on else None
    settings = replace(SETTINGS, **changes)
    strategy = SingleProcess(algorithm, source, Executor(algorithm, TaskPlan("vmap")), settings)
    return Trainer(
        algorithm,
        updater,
        source,
        strategy,
        CheckpointStore(log.run_dir),
        log,
        settings,
        replace(SPEC, monitor=monitor),
        metadata={"plan_asked": "vmap"},
    )


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_loop_draws_logs_validates_and_saves_when_it_is_time(tmp_path: Path) -> None:
    source = ToySource()
    with RunLog(tmp_path) as log:
        trainer(log, source).train()
    drawn = [(first, count) for split, seed, first, count in source.asked if split == "train"]
    assert drawn == [(4 * step, 4) for step in range(6)]
    assert {seed for split, seed, *_ in source.asked if split == "train"} == {3}
    assert {seed for split, seed, *_ in source.asked if split == "val"} == {9}
    assert {split for split, *_ in source.asked} == {"train", "val"}  # test is not read here
    assert [(line["step"], line["split"]) for line in lines(tmp_path)] == [
        (2, "val"),
        (4, "train"),
        (4, "val"),
        (6, "train"),
        (6, "val"),
    ]
    store = CheckpointStore(tmp_path)
    assert store.pointed("last") == 6
    assert store.pointed("best") == 6


def test_loss_of_a_line_is_the_mean_since_the_line_before(tmp_path: Path) -> None:
    with RunLog(tmp_path / "a") as every, RunLog(tmp_path / "b") as seldom:
        trainer(every, ToySource(), log_every=1, eval_every=100).train()
        trainer(seldom, ToySource(), log_every=3, eval_every=100).train()
    fine = [line["loss"] for line in lines(tmp_path / "a") if line["split"] == "train"]
    coarse = [line["loss"] for line in lines(tmp_path / "b") if line["split"] == "train"]
    assert coarse == pytest.approx([sum(fine[:3]) / 3, sum(fine[3:]) / 3])


def test_flat_minibatches_are_counted_in_rows(tmp_path: Path) -> None:
    class Flat(ToyAlgorithm):
        trains_on = "examples"

        def losses(self, tasks: Batch, how: Plan) -> tuple[torch.Tensor, Metrics]:
            assert isinstance(tasks, Examples)
            return (self.prior - tasks.y).square().mean()[None], {}

    source = ToySource()
    with RunLog(tmp_path) as log:
        trainer(log, source, Flat(), outer_steps=3).train()
    assert [asked for asked in source.asked if asked[0] == "examples"] == [
        ("examples", 3, 5 * step, 5) for step in range(3)
    ]


def test_method_without_training_ends_at_step_zero_with_a_checkpoint(tmp_path: Path) -> None:
    class Fixed(ToyAlgorithm):
        trains_on = None

    source = ToySource()
    with RunLog(tmp_path) as log:
        trainer(log, source, Fixed()).train()
    assert source.asked == []
    assert CheckpointStore(tmp_path).steps() == [0]


def test_impatient_training_stops_when_validation_no_longer_improves(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        actor = trainer(log, ToySource(), patience=2, eval_every=1, outer_steps=100, lr=5.0)
        actor.train()
    best = actor.history.best()
    assert best is not None
    assert actor.step == best + 2
    assert CheckpointStore(tmp_path).pointed("best") == best


def test_bad_step_and_its_tasks_are_named_and_the_good_checkpoint_kept(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        actor = trainer(log, ToySource(bad_tasks=(13, 14)), checkpoint_every=1)
        with pytest.raises(NonFiniteError) as caught:
            actor.train()
    message = str(caught.value)
    assert "at step 3 (counted from 0), train tasks 13, 14, algo.inner_lr=0.5" in message
    assert f"last good checkpoint: {tmp_path}/checkpoints/step-000003" in message
    assert caught.value.exit_code == 1
    store = CheckpointStore(tmp_path)
    assert store.newest().step == 3
    assert torch.equal(store.newest().tensors["weights.prior"], actor.algorithm.prior)
    assert all(
        "Infinity" not in text and "NaN" not in text
        for text in (tmp_path / "metrics.jsonl").read_text().splitlines()
    )


def test_cpu_run_stops_at_the_bad_step_itself(tmp_path: Path) -> None:
    source = ToySource(bad_tasks=(5,))
    with RunLog(tmp_path) as log, pytest.raises(NonFiniteError, match=r"train task 5,"):
        trainer(log, source, log_every=100, checkpoint_every=100, eval_every=100).train()
    # drawn again to find the culprit
    assert [first for split, _, first, _ in source.asked if split == "train"] == [
        0,
        4,
        4,
    ]


@pytest.mark.parametrize(("step", "due"), [(0, False), (3, True), (4, False), (6, True), (7, True)])
def test_periods_count_from_one_and_always_hold_the_last_step(step: int, due: bool) -> None:
    assert is_time(step, 3, 7) is due


def test_record_ranks_by_the_direction_of_the_metric_and_the_earlier_of_equals() -> None:
    history = ValidationHistory(higher_is_better=True)
    for step, value in ((1, 0.5), (2, float("nan")), (3, 0.7), (4, 0.7)):
        history.enter(step, value)
    assert history.ranked(2) == [3, 4]
    assert history.since_best() == 1
    assert ValidationHistory(False, history.entries).best() == 1
    assert ValidationHistory(True).best() is None


def test_a_chunk_that_was_halved_stays_halved_unless_another_plan_is_asked_for(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        first = trainer(log, ToySource(), outer_steps=3)
        first.strategy.executor.plan = TaskPlan("vmap", 2)  # as after running out of memory
        first.train()
        checkpoint = first.store.newest()
        again = trainer(log, ToySource())
        again.resume(checkpoint)
        assert again.strategy.executor.plan == TaskPlan("vmap", 2)
        other = trainer(log, ToySource())
        other.metadata = {"plan_asked": "loop"}
        other.resume(checkpoint)
        assert other.strategy.executor.plan == TaskPlan("vmap")


def test_rollback_goes_on_with_the_meta_batches_after_the_bad_one(tmp_path: Path) -> None:
    """Meta-batch 4 is bad; the checkpoint is that of step 2, so that 2, 3 and 4 are passed over."""
    source = ToySource(bad_tasks=(17,))
    with RunLog(tmp_path) as log:
        actor = trainer(
            log, source, checkpoint_every=2, eval_every=100, log_every=2, outer_steps=7, on_nan="rollback"
        )
        usual = actor.save
        actor.save = lambda *, must=False: usual(must=must) if actor.step in (0, 2, 7) else None  # type: ignore[method-assign]
        for _ in range(2):
            with rollback.instead_of_failing(actor):
                actor.train()
    drawn = [first // 4 for split, _, first, _ in source.asked if split == "train"]
    assert drawn == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9]  # 4 again to find the culprit
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 7, 7]
    assert (actor.shift, actor.rollbacks, actor.step) == (3, 1, 7)


def test_skip_on_a_device_that_is_read_seldom_names_the_first_and_counts_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU. By then the weights are no longer those that step 1 met, so that its tasks are not run
    again.
    """
    with RunLog(tmp_path) as log:
        log.listen()
        actor = trainer(
            log, ToySource(bad_tasks=(5, 13)), checkpoint_every=100, eval_every=100, log_every=100
        )
        assert actor.updater is not None
        actor.updater.limit = 3
        actor.require_finite = lambda: None  # type: ignore[method-assign]
        actor.train()
        del actor.require_finite
        actor.require_finite()
    shown = capsys.readouterr().out
    assert "at step 1 (counted from 0), one of train tasks 4 to 7, algo.inner_lr=0.5" in shown
    assert "left out 2 of 6 updates so far (trainer.on_nan=skip)" in shown
    [line] = [line for line in lines(tmp_path) if line["split"] == "train"]
    assert (line["left_out"], line["loss"] is not None) == (2, True)


def test_a_window_of_nothing_but_bad_steps_has_no_mean() -> None:
    running_means = RunningMeans()
    for value in (1.0, float("nan"), 4.0):
        running_means.add({"loss": torch.tensor(value)}, torch.tensor(value != 4.0))
    assert running_means.take() == {"loss": 4.0, "left_out": 2}
    running_means.add({"loss": torch.tensor(float("inf"))}, torch.tensor(True))
    assert str(running_means.take()) == "{'loss': nan, 'left_out': 1}"


def test_best_weights_that_the_disk_refused_are_not_chosen_and_three_refusals_in_a_row_end_training(
    tmp_path: Path,
) -> None:
    with RunLog(tmp_path) as log:
        log.listen()
        actor = trainer(log, ToySource(), eval_every=1, checkpoint_every=100, outer_steps=100)
        usual, refused = actor.store.save, []

        def save(step: int, *parts: Any, **more: Any) -> None:
            if step in (2, 4, 5, 6):
                refused.append(step)
                raise SaveError("no space")
            usual(step, *parts, **more)

        actor.store.save = save  # type: ignore[method-assign]
        with pytest.raises(SaveError, match="no space. Free space or fix the folder"):
            actor.train()
    assert refused == [2, 4, 5, 6]  # every validation is the best so far
    assert [step for step, _ in actor.history.entries] == [1, 3, 6]
    assert actor.store.pointed("best") == 3
    assert (
        "training goes on (failed saves in a row: 2, 3 end the run)" in (tmp_path / "train.log").read_text()
    )


def test_warnings_of_what_was_left_out_come_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonfinite, "MOST_WARNINGS", 2)
    with RunLog(tmp_path) as log:
        log.listen()
        actor = trainer(log, ToySource(bad_tasks=(0, 9, 17)), log_every=1, eval_every=100)
        assert actor.updater is not None
        actor.updater.limit = 2
        actor.train()
    told = [line for line in (tmp_path / "train.log").read_text().splitlines() if "not finite" in line]
    assert [f"at step {step} (counted from 0)" in line for step, line in zip((0, 2), told, strict=True)] == [
        True,
        True,
    ]
    assert ["further ones are only counted, in metrics.jsonl" in line for line in told] == [False, True]
    assert sum(line.get("left_out", 0) for line in lines(tmp_path)) == 3
