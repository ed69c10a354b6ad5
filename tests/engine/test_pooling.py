"""Metrics that are no mean over tasks: values from summed totals, intervals from resampled tasks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.engine.evaluate import evaluate, summarise
from metalearn.engine.executor import TaskPlan
from metalearn.engine.pooling import RESAMPLES, draw_weights, pooled
from metalearn.errors import ConfigError
from metalearn.hashing import fold, normal
from metalearn.objectives import Regression
from tests.engine.toy import ToyAlgorithm, ToySource, eval_spec


class Pooling(Regression):
    """The mean squared error of all rows of all tasks together, and the largest bin of a histogram of the
    errors.
    """

    def totals(self, prediction: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
        error = (prediction - y).square().mean(-1)
        place = error.floor().clamp(0, 3)[:, None] == torch.arange(4)
        return {"rows": mask.sum(), "error": error.sum(), "bins": place.sum(0)}

    def summary(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pooled_mse": sums["error"] / sums["rows"], "share": sums["bins"].max() / sums["rows"]}


class PoolingSource(ToySource):
    def __init__(self, objective: Any = None) -> None:
        super().__init__()
        self.objective = objective or Pooling()

    def spec(self, split: Any) -> Any:
        return replace(super().spec(split), objective=self.objective)


def judged(objective: Any = None, *, plan: str = "vmap", chunk: int = 5, episodes: int = 11) -> Any:
    source = PoolingSource(objective)
    spec = eval_spec("test", seed=5, episodes=episodes, chunk=chunk)
    return evaluate(ToyAlgorithm(noise=0.3), source, spec, plan=TaskPlan(plan))


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = normal(fold(1), (400,)) + 3.0
    sums = {"error": values, "rows": torch.ones(400), "bins": torch.ones(400, 4)}
    found, expected = pooled(Pooling(), sums)["pooled_mse"], summarise(values.tolist())
    assert found["mean"] == pytest.approx(expected["mean"])
    assert found["ci95"] == pytest.approx(expected["ci95"], rel=0.05)
    assert found["std"] == pytest.approx(expected["std"], rel=0.05)


def test_every_resample_draws_as_many_tasks_as_there_are_and_no_two_are_alike() -> None:
    weights = torch.cat(list(draw_weights(700)))
    assert weights.shape == (RESAMPLES, 700)
    assert set(weights.sum(1).tolist()) == {700.0}
    assert len(weights.unique(dim=0)) == RESAMPLES
    assert weights.mean(0).sub(1).abs().max() < 6 / math.sqrt(RESAMPLES), "no task is preferred"


def test_pooled_metrics_stand_beside_the_others_and_have_no_column() -> None:
    result = judged()
    assert {"pooled_mse", "share", "mse", "mse_step_0"} <= set(result.summary)
    assert set(result.summary) - {"pooled_mse", "share", "mse_worst_decile"} == set(result.columns) - {
        "task_id",
        "task_sha256",
    }
    assert result.summary["pooled_mse"]["mean"] == pytest.approx(result.summary["mse"]["mean"])
    assert 0 < result.summary["share"]["ci95"] < 1


@pytest.mark.parametrize("chunk", [1, 4, 11])
def test_pooled_metrics_are_the_same_bits_for_any_number_of_tasks_at_once(chunk: int) -> None:
    assert judged(chunk=chunk).summary == judged().summary


def test_a_metric_that_is_undefined_in_a_resample_has_no_value() -> None:
    class Rare(Pooling):
        def summary(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"rare": sums["error"] / sums["bins"][0]}

    bins = torch.zeros(5, 4)
    bins[0, 0] = 1.0  # about a third of the resamples lack this task
    found = pooled(Rare(), {"error": torch.ones(5), "rows": torch.ones(5), "bins": bins})
    assert all(map(math.isnan, found["rare"].values()))


def test_an_objective_without_pooled_metrics_works_as_before() -> None:
    assert set(judged(Regression()).summary) == {
        "loss",
        "mse",
        "mse_inductive",
        "mse_worst_decile",
        *(f"mse_step_{k}" for k in range(4)),
    }


class Half(Regression):
    def totals(self, prediction: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"rows": mask.sum()}


class Vector(Pooling):
    def summary(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"bins": sums["bins"]}


class Taken(Pooling):
    def summary(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"mse": sums["error"]}


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        (
            Half(),
            r"Half has totals\(\) but no summary\(\); a pooled metric needs both, so define summary\(\)",
        ),
        (
            Vector(),
            r"Vector.summary gives bins as a tensor of shape \(4,\); a metric is a tensor without dimensions",
        ),
        (Taken(), "Taken.summary gives mse, which is the name of another metric; rename it"),
    ],
)
def test_what_an_objective_cannot_pool_is_refused_in_a_sentence(objective: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        judged(objective)
