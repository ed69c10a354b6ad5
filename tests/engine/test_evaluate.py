from __future__ import annotations

import copy
import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalearn.core import Algorithm, Source, Task, blank_query
from metalearn.engine.evaluate import (
    curve_steps,
    decimals,
    draw_tasks,
    evaluate,
    evaluate_batch,
    summarise,
)
from metalearn.engine.executor import TaskPlan
from metalearn.errors import ConfigError
from tests.engine.toy import ToyAlgorithm, ToySource, eval_spec
from tests.plugins import METHODS, class_of, in_memory

VMAP = TaskPlan("vmap")
SPEC = eval_spec("val", seed=5, episodes=3)


def run(
    algorithm: ToyAlgorithm,
    source: ToySource | None = None,
    *,
    episodes: int = 7,
    plan: TaskPlan = VMAP,
    chunk: int = 3,
    seed: int = 5,
):
    spec = eval_spec("test", seed=seed, episodes=episodes, chunk=chunk)
    return evaluate(algorithm, source or ToySource(), spec, plan=plan)


def test_task_numbers_come_first_and_there_is_a_row_per_task() -> None:
    columns = run(ToyAlgorithm()).columns
    assert next(iter(columns)) == "task_id"
    assert columns["task_id"] == list(range(7))
    assert {len(values) for values in columns.values()} == {7}


@pytest.mark.parametrize("plan", [TaskPlan("loop"), TaskPlan("vmap")])
@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_numbers_depend_neither_on_the_plan_nor_on_the_chunk(plan: TaskPlan, chunk: int) -> None:
    expected = run(ToyAlgorithm(noise=0.3)).columns
    found = run(ToyAlgorithm(noise=0.3), plan=plan, chunk=chunk).columns
    assert list(found) == list(expected)
    assert all(found[name] == pytest.approx(values) for name, values in expected.items())


def test_state_mode_and_random_numbers_are_as_before() -> None:
    algorithm = ToyAlgorithm()
    algorithm.train()
    before, random_state = copy.deepcopy(algorithm.state_dict()), torch.get_rng_state()
    run(algorithm)
    assert all(torch.equal(before[name], value) for name, value in algorithm.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert algorithm.training
    assert all(p.grad is None for p in algorithm.parameters())


def test_adaptation_never_sees_the_answers() -> None:
    class Cheat(ToyAlgorithm):
        def adapt(self, task: Task, *, steps: int) -> dict[str, torch.Tensor]:
            return {"guess": task.query.y.mean(0)}

    result = run(Cheat())
    assert result.summary["mse"]["mean"] > 1.0  # it predicts the blank, 0, where the answers are near 2


class Reporting(ToyAlgorithm):
    """Tells how far the worst answer is, and how fast the error grows with the guess: a gradient, as of an
    attack.
    """

    def report(self, adapted: dict[str, torch.Tensor], task: Task) -> dict[str, torch.Tensor]:
        error = torch.func.grad(lambda guess: (guess - task.query.y).square().mean())(adapted["guess"])
        return {"worst": (adapted["guess"] - task.query.y).abs().max(), "slope": error.abs().sum()}


@pytest.mark.parametrize("plan", [TaskPlan("loop"), TaskPlan("vmap")])
def test_a_method_reports_metrics_of_its_own_with_the_answers(plan: TaskPlan) -> None:
    result, without = run(Reporting(), plan=plan), run(ToyAlgorithm(), plan=plan)
    assert len(result.columns["worst"]) == 7
    assert result.summary["worst"]["mean"] > result.summary["mse"]["mean"] ** 0.5
    assert result.summary["worst"]["ci95"] > 0
    assert result.summary["slope"]["mean"] > 0
    assert {
        name: values for name, values in result.columns.items() if name in without.columns
    } == without.columns


def test_a_report_comes_after_every_prediction() -> None:
    class Spoiler(ToyAlgorithm):
        def report(self, adapted: dict[str, torch.Tensor], task: Task) -> dict[str, torch.Tensor]:
            adapted["guess"] = task.query.y.mean(0)
            return {"worst": task.query.y.max()}

        def inductive(self, adapted: Any, task: Task) -> Any:
            return {"guess": adapted["guess"] + 0.0}

    assert run(Spoiler()).summary["mse_inductive"] == run(ToyAlgorithm()).summary["mse_inductive"]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (
            {"worst": torch.zeros(3)},
            r"Odd.report gives worst as a tensor of shape \(3,\); a metric is a tensor without dimensions",
        ),
        ({"worst": 0.5}, "Odd.report gives worst as a float; a metric is a tensor without dimensions"),
        ({"mse": torch.zeros(())}, "Odd.report gives mse, which is the name of another metric; rename it"),
    ],
)
def test_a_report_that_is_no_metric_is_refused_in_a_sentence(found: dict[str, Any], reason: str) -> None:
    class Odd(ToyAlgorithm):
        def report(self, adapted: Any, task: Task) -> dict[str, Any]:
            return found

    with pytest.raises(ConfigError, match=reason):
        run(Odd())


def test_interval_is_that_of_the_normal_approximation() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    found = summarise(values)
    assert found["mean"] == 4.0
    assert found["std"] == pytest.approx(statistics.stdev(values))
    assert found["ci95"] == pytest.approx(1.96 * statistics.stdev(values) / 2)


def test_metric_that_is_not_finite_has_no_mean() -> None:
    assert math.isnan(summarise([1.0, math.inf])["mean"])
    assert math.isfinite(summarise([1.0, 1e200])["std"]), "the squares of a divergence must not overflow"


def test_values_are_the_shortest_decimals_that_read_back_as_the_same_bits() -> None:
    assert decimals(torch.tensor([4 / 5, 1 / 3, 0.0])) == [0.8, 0.33333334, 0.0]
    random = torch.randn(1000, generator=torch.Generator().manual_seed(0)).exp()
    for values in (random, random.bfloat16().float(), torch.tensor([-0.0, torch.inf, 1e-42, 3e38])):
        assert np.array(decimals(values), dtype=np.float32).tobytes() == values.numpy().tobytes()
    assert decimals(torch.tensor([1 / 3], dtype=torch.float64)) == [1 / 3]
    assert decimals(torch.tensor([True, False])) == [True, False]


def test_means_are_taken_of_the_values_that_the_columns_show() -> None:
    result = run(ToyAlgorithm(noise=0.3))
    assert all(len(repr(value).replace(".", "").lstrip("0")) <= 9 for value in result.columns["mse"])
    assert result.summary["mse"] == summarise(result.columns["mse"])


def test_finite_split_is_judged_once_and_never_repeated() -> None:
    source = ToySource(limit=5)
    result = run(ToyAlgorithm(), source, episodes=600)
    assert result.episodes == 5
    assert source.asked[-1] == ("test", 5, 0, 5)


def test_one_task_gives_no_interval_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 tasks of split 'test' give no interval"):
        run(ToyAlgorithm(), ToySource(limit=1))


def test_curve_ends_in_the_protocols_own_number() -> None:
    summary = run(ToyAlgorithm()).summary
    assert [name for name in summary if "_step_" in name] == [f"mse_step_{k}" for k in range(4)]
    assert summary["mse_step_3"] == summary["mse"]
    assert summary["mse_step_0"]["mean"] > summary["mse_step_3"]["mean"]
    assert summary["mse_inductive"] == summary["mse"]


def test_a_path_of_adaptation_equals_adapting_anew_bit_for_bit(pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    batch = blank_query(draw_tasks(algorithm, source, "val", seed=5, first=0, count=3))
    counts = curve_steps(algorithm.eval_adaptation_steps)
    with torch.no_grad():
        path = VMAP.map(
            lambda task: dict(zip(counts, algorithm.adapt_path(task, counts=counts), strict=True)), batch
        )
        for k in counts:
            anew = VMAP.map(lambda task, k=k: algorithm.adapt(task, steps=k), batch)
            assert all(map(torch.equal, tree_leaves(path[k]), tree_leaves(anew)))


def test_curve_does_not_change_the_other_numbers(pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    batch = draw_tasks(algorithm, source, "val", seed=5, first=0, count=3)
    found, without = (
        evaluate_batch(algorithm, source.spec("val").objective, VMAP, replace(SPEC, curve=curve), batch)
        for curve in (True, False)
    )
    assert list(found)[: len(without)] == list(without)
    assert all(torch.equal(found[name], values) for name, values in without.items())


class Gradients(TorchDispatchMode):
    """Counts how often a cross-entropy is differentiated."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._log_softmax_backward_data.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", [m for m in METHODS if "classification" in class_of(m).kinds])
def test_curve_costs_no_further_adaptation(method: str) -> None:
    algorithm, source = in_memory(method, "classification")
    batch = draw_tasks(algorithm, source, "val", seed=5, first=0, count=2)
    counts = []
    for curve in (False, True):
        with Gradients() as gradients:
            evaluate_batch(algorithm, source.spec("val").objective, VMAP, replace(SPEC, curve=curve), batch)
        counts.append(gradients.count)
    assert counts[0] == counts[1] >= algorithm.eval_adaptation_steps


@pytest.mark.parametrize(
    ("last", "steps"),
    [
        (0, [0]),
        (3, [0, 1, 2, 3]),
        (10, list(range(11))),
        (50, [0, 1, 2, 5, 10, 20, 50]),
        (60, [0, 1, 2, 5, 10, 20, 50, 60]),
    ],
)
def test_steps_of_the_curve(last: int, steps: list[int]) -> None:
    assert curve_steps(last) == steps


def test_tasks_do_not_depend_on_anything_but_seed_split_and_number() -> None:
    first, second = ToySource(), ToySource()
    run(ToyAlgorithm(), first, chunk=7)
    run(ToyAlgorithm(noise=1.0), second, chunk=7)
    assert first.asked == second.asked
    assert first.asked[-1] == ("test", 5, 0, 7)


@pytest.mark.parametrize("plan", [TaskPlan("loop"), TaskPlan("vmap")], ids=str)
def test_predictions_are_kept_for_every_query_and_change_no_number(
    plan: TaskPlan, pair: tuple[Algorithm, Source]
) -> None:
    algorithm, source = pair
    spec = replace(SPEC, chunk=2)
    expected = evaluate(algorithm, source, spec, plan=plan)
    found = evaluate(algorithm, source, replace(spec, predictions=True), plan=plan)
    assert repr(found.columns) == repr(expected.columns)
    assert found.summary == expected.summary
    assert expected.rows == {}
    tasks = draw_tasks(algorithm, source, "val", seed=5, first=0, count=3)
    assert torch.equal(found.rows["y"], tasks.query.y)
    assert torch.equal(found.rows["mask"], tasks.query.mask)
    objective = source.spec("val").objective
    for number in range(3):
        loss = objective.loss(*(found.rows[name][number] for name in ("prediction", "y", "mask")))
        assert float(loss) == pytest.approx(found.columns["loss"][number], rel=1e-5)
