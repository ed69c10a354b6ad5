"""Tasks of an evaluation: how many at once, the same bits whatever their number, and what happens when memory
is short.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.build.objects import build_algorithm, build_source
from metalearn.config.compose import compose
from metalearn.core import Algorithm, Source, TaskBatch
from metalearn.engine import batching
from metalearn.engine.batching import Batching
from metalearn.engine.evaluate import batching_of, evaluate, evaluate_batches
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.memory import LiveBytes
from metalearn.engine.strategy import SingleProcess
from metalearn.errors import MetalearnError
from tests.engine.test_memory import MESSAGES
from tests.engine.test_trainer import SETTINGS
from tests.engine.toy import ToyAlgorithm, ToySource, eval_spec

CPU, VMAP = torch.device("cpu"), TaskPlan("vmap")
IMAGES = [
    "data=glyphs",
    "data.num_classes=48",
    "data.num_drawings=6",
    "data.image_size=14",
    "data.way=3",
    "data.query_shot=2",
]
WORKLOADS = {
    "maml": [*IMAGES, "model.channels=16", "algo.eval_adaptation_steps=1"],
    "protonet": [*IMAGES, "model.norm_statistics=transductive"],
    "maml, ratings": [
        "data=synthetic_ratings",
        "data.num_users=100",
        "data.num_items=40",
        "algo.inner_lr=0.01",
    ],
}


def built(name: str, cache: Path) -> tuple[Algorithm, Source]:
    words = [f"data.cache_dir={cache}"] if IMAGES[0] in WORKLOADS[name] else []
    cfg = compose(["device=cpu", f"algo={name.partition(',')[0]}", *WORKLOADS[name], *words])
    source = build_source(cfg, CPU)
    return build_algorithm(cfg, source, CPU), source


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def judged(
    algorithm: Algorithm, source: Source, episodes: int, chunk: int | None, plan: TaskPlan = VMAP
) -> dict[str, list[Any]]:
    spec = eval_spec("val", seed=3, episodes=episodes, chunk=chunk)
    return evaluate(algorithm, source, spec, plan=plan).columns


@pytest.mark.parametrize("plan", [VMAP, TaskPlan("loop")], ids=str)
@pytest.mark.parametrize("name", WORKLOADS)
def test_scores_are_the_same_bits_whatever_number_is_taken_at_once(
    name: str, plan: TaskPlan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "UNITS", (3, 1))
    algorithm, source = built(name, cache)
    expected = judged(algorithm, source, 8, None, plan)
    for chunk in (1, 2, 7):
        assert repr(judged(algorithm, source, 8, chunk, plan)) == repr(expected), chunk


@pytest.mark.parametrize("name", WORKLOADS)
def test_last_unit_that_is_not_full_gives_the_bits_of_a_full_one(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "UNITS", (3, 1))
    algorithm, source = built(name, cache)
    some, more = (judged(algorithm, source, episodes, None) for episodes in (7, 9))
    assert repr(some) == repr({name: values[:7] for name, values in more.items()})


def test_as_many_tasks_are_taken_as_their_bytes_allow_and_no_more_than_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unit(bytes_of_one: int, episodes: int = 600, limit: int | None = None) -> tuple[int, int]:
        monkeypatch.setitem(batching.UNIT_BYTES, "cpu", 1000)

        def score(batch: TaskBatch) -> dict[str, Tensor]:
            return {"loss": torch.zeros(bytes_of_one, dtype=torch.uint8)}

        task = ToySource().tasks("val", seed=0, first=0, count=1)
        size, demand = batching.batching(score, task, alone=False, episodes=episodes, limit=limit)
        assert (demand.count, demand.each) == (size.unit, bytes_of_one)
        return size.unit, size.held

    assert [unit(count)[0] for count in (1, 20, 21, 99, 100, 101, 501, 5000)] == [50, 50, 20, 10, 10, 5, 1, 1]
    assert unit(100, episodes=4) == (4, 4)
    assert [unit(100, limit=limit)[1] for limit in (1, 10, 19, 20, 55)] == [10, 10, 10, 20, 50], (
        "whole units are held"
    )


@pytest.mark.parametrize(
    ("episodes", "held", "ranks", "alone", "tasks"),
    [
        (100, 50, 1, False, 100),
        (120, 50, 1, False, 150),  # the last unit is filled up
        (120, 50, 1, True, 120),
        (50, 50, 2, False, 50),  # a batch is not shared
        (120, 50, 2, False, 100),
        (600, 100, 4, False, 200),
        (3, 1, 8, True, 1),
    ],
)
def test_the_busiest_rank_has_whole_batches(
    episodes: int, held: int, ranks: int, alone: bool, tasks: int
) -> None:
    assert Batching(min(held, 50), held, alone).busiest(episodes, ranks) == tasks


def test_memory_of_an_evaluation_does_not_grow_with_its_tasks(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm, source = built("protonet", cache)
    _, one = batching_of(algorithm, source, eval_spec("val", 3, 2), VMAP)
    monkeypatch.setitem(batching.UNIT_BYTES, "cpu", 2.5 * one.each)
    spec = eval_spec("val", 3, 30)
    size, _ = batching_of(algorithm, source, spec, VMAP)
    with LiveBytes() as count:
        for _ in evaluate_batches(algorithm, source, spec, VMAP, size):
            pass
    assert count.peak < 3 * one.each


class Hungry(ToyAlgorithm):
    """Runs out of memory when more than `limit` tasks are adapted to at once, under vmap."""

    def __init__(self, limit: int, error: Exception) -> None:
        super().__init__()
        self.limit, self.error = limit, error
        self.asked: list[int] = []

    def adapt_path(self, task: Any, *, counts: Any) -> Any:
        functorch = torch._C._functorch
        many = functorch.get_unwrapped(task.key).numel() if functorch.is_batchedtensor(task.key) else 1
        self.asked.append(many)
        if many > self.limit:
            raise self.error
        return super().adapt_path(task, counts=counts)


ERRORS = {
    "cuda": torch.OutOfMemoryError(MESSAGES["cuda"]),
    "cpu": RuntimeError(MESSAGES["cpu"]),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_tasks_are_halved_when_memory_runs_out_and_what_did_not_fit_is_not_tried_again(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = eval_spec("val", seed=3, episodes=25)
    expected = judged(ToyAlgorithm(), ToySource(), 25, None)
    monkeypatch.setattr(batching, "UNITS", (10, 1))
    algorithm = Hungry(limit=10, error=ERRORS[kind])
    strategy = SingleProcess(algorithm, ToySource(), Executor(algorithm, VMAP), SETTINGS)
    strategy.size(spec)
    algorithm.limit = 2
    algorithm.asked.clear()
    with caplog.at_level(logging.WARNING):
        found = strategy.evaluate(spec).columns
    assert {name: pytest.approx(values) for name, values in found.items()} == expected
    assert algorithm.asked == [10, 5, *[2] * 13], "batches of ten, ten and five"
    assert [record.args or record.message for record in caplog.records] == [
        f"out of memory with {many} tasks at once; going on with {many // 2}, which may change the last "
        "digits of the numbers"
        for many in (10, 5)
    ]
    algorithm.asked.clear()
    strategy.evaluate(spec)
    assert set(algorithm.asked) == {2}


@pytest.mark.parametrize("plan", [VMAP, TaskPlan("loop")], ids=str)
def test_a_task_that_does_not_fit_alone_is_said_in_a_sentence_and_other_errors_pass(plan: TaskPlan) -> None:
    with pytest.raises(
        MetalearnError,
        match=r"^out of memory with a single task: std::bad_alloc; choose a smaller model, fewer rows or",
    ):
        judged(Hungry(0, ERRORS["C++"]), ToySource(), 5, None, plan)
    with pytest.raises(RuntimeError, match="^shapes do not fit$"):
        judged(Hungry(0, RuntimeError("shapes do not fit")), ToySource(), 5, None, plan)


def test_tasks_that_cannot_be_drawn_at_once_are_said_to_be_too_many() -> None:
    class Large(ToySource):
        def tasks(self, split: Any, *, seed: int, first: int, count: int) -> TaskBatch:
            if count > 50:
                raise MemoryError
            return super().tasks(split, seed=seed, first=first, count=count)

    assert len(judged(ToyAlgorithm(), Large(), 120, None)["loss"]) == 120
    with pytest.raises(
        MetalearnError,
        match=r"^out of memory with 100 tasks at once: the system refused; lower eval.chunk$",
    ):
        judged(ToyAlgorithm(), Large(), 120, 100)


def test_fewer_tasks_are_taken_before_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batching, "UNITS", (50, 1))
    _, demand = batching_of(ToyAlgorithm(), ToySource(), eval_spec("test", 0, 40), VMAP)
    for free, unit in ((None, 40), (2**40, 40), (1.6 * (demand.fixed + 12 * demand.each), 10), (0, 1)):
        monkeypatch.setattr("metalearn.engine.strategy.free_share", lambda device, ranks, free=free: free)
        caplog.clear()
        strategy = SingleProcess(ToyAlgorithm(), ToySource(), Executor(ToyAlgorithm(), VMAP), SETTINGS)
        assert strategy.size(eval_spec("test", 0, 40)) == Batching(unit, 40)
        assert len(caplog.records) == (unit < 40)
    assert "evaluation needs about 0.0 MiB for 40 tasks at once" in caplog.text


def test_a_unit_that_was_halved_is_that_of_a_resumed_run() -> None:
    first, again = (
        SingleProcess(ToyAlgorithm(), ToySource(), Executor(ToyAlgorithm(), VMAP), SETTINGS) for _ in range(2)
    )
    val, test = eval_spec("val", 1, 40, curve=False), eval_spec("test", 1, 40)
    first.size(val).unit = 5  # memory ran out in a validation
    assert first.size(test).unit == 40
    assert first.units() == [["val", 1, 40, False, 5], ["test", 1, 40, True, 40]]
    again.take_back_units(first.units())
    assert [again.size(spec).unit for spec in (val, test)] == [5, 40]
