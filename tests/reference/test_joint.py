"""Joint pre-training against plain PyTorch: supervised learning, then gradient steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metalearn.algorithms.joint import Joint
from metalearn.config.compose import compose
from metalearn.core import blank_query
from metalearn.engine.executor import TaskPlan
from metalearn.errors import ConfigError
from metalearn.models.mlp import MLP
from tests.reference.test_cavia import CURVES, POINT, curves, only
from tests.reference.test_gradients import gradients, perturbed
from tests.shipped import built


def made() -> Joint:
    torch.manual_seed(0)
    algorithm: Joint = perturbed(
        built(Joint, built(MLP, POINT, hidden=[5, 4], init="default", head_init="default"), CURVES)
    )
    return algorithm


def plain(algorithm: Joint) -> torch.nn.Sequential:
    """The same network, by itself."""
    first, second = algorithm.model.layers
    return torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), algorithm.head)


@pytest.mark.parametrize("plan", [TaskPlan("loop"), TaskPlan("vmap"), TaskPlan("vmap", 2)], ids=str)
def test_the_gradient_is_that_of_supervised_learning_on_the_query_rows_of_all_tasks(plan: TaskPlan) -> None:
    algorithm, tasks = made(), curves(3)
    network = plain(algorithm)
    prediction = network(tasks.query.x.flatten(0, 1))
    grads = torch.autograd.grad(
        F.mse_loss(prediction, tasks.query.y.flatten(0, 1)), list(network.parameters())
    )
    found = gradients(algorithm, tasks, plan)
    expected = {id(p): grad for p, grad in zip(network.parameters(), grads, strict=True)}
    for name, p in algorithm.named_parameters():
        torch.testing.assert_close(found[name], expected[id(p)], rtol=1e-9, atol=1e-12)


def test_the_support_never_reaches_the_gradient() -> None:
    algorithm, tasks = made(), curves(2)
    other = tasks._replace(support=tasks.support._replace(x=-tasks.support.x, y=9 * tasks.support.y))
    first, second = (gradients(algorithm, batch, TaskPlan("vmap")) for batch in (tasks, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("steps", [0, 4])
def test_it_is_judged_after_gradient_steps_on_the_support(steps: int) -> None:
    algorithm, task = made(), only(curves())
    adapted = algorithm.adapt(blank_query(task), steps=steps)
    found = algorithm.predict(adapted, task.query.x, task.query.mask)
    network = plain(algorithm)
    descent = torch.optim.SGD(network.parameters(), lr=algorithm.inner_lr)
    for _ in range(steps):
        descent.zero_grad()
        F.mse_loss(network(task.support.x), task.support.y).backward()
        descent.step()
    torch.testing.assert_close(found, network(task.query.x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "word",
    ["algo.inner_lr=0", "algo.eval_adaptation_steps=-1", "algo.adaptation_steps=1", "algo.order=2"],
)
def test_a_wrong_value_is_refused_before_torch_is_imported(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        compose(["algo=joint", word])


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="algo.adapts=.'body'.: body matches no parameter"):
        built(Joint, built(MLP, POINT, hidden=[5]), CURVES, adapts=["body"])
