"""MAML and the YAMLs of its class against a plain PyTorch implementation, with an MLP of two layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.algorithms.maml import MAML
from metalearn.config.loader import Library
from metalearn.core import Task, map_leaves
from metalearn.engine.executor import TaskPlan
from metalearn.models.mlp import MLP
from tests.reference.tasks import IMAGE, image_spec, image_tasks
from tests.reference.test_gradients import gradients, perturbed
from tests.shipped import built

LR, STEPS = 0.3, 3
BODY = ["model.layers.0.weight", "model.layers.0.bias", "model.layers.1.weight", "model.layers.1.bias"]
HEAD = ["head.weight", "head.bias"]
# What each paper's inner loop moves, and by which order the outer gradient is taken.
PAPERS = {
    "maml": (BODY + HEAD, 2),
    "fomaml": (BODY + HEAD, 1),
    "anil": (HEAD, 2),
    "boil": (BODY, 2),
}


def shipped(name: str) -> MAML:
    node = Library().read("algo", name)
    dials = {key: node[key] for key in ("order", "adapts")}
    torch.manual_seed(0)
    model = built(MLP, IMAGE, hidden=[7, 6], init="default", head_init="default")
    algorithm = built(MAML, model, image_spec(), inner_lr=LR, adaptation_steps=STEPS, **dials)
    assert isinstance(perturbed(algorithm), MAML)
    return algorithm


def logits(w: dict[str, Tensor], x: Tensor) -> Tensor:
    h = x.flatten(1)
    for layer in ("model.layers.0", "model.layers.1"):
        h = F.linear(h, w[f"{layer}.weight"], w[f"{layer}.bias"]).relu()
    return F.linear(h, w["head.weight"], w["head.bias"])


def plain_gradient(weights: dict[str, Tensor], tasks: Any, moved: list[str], order: int) -> dict[str, Tensor]:
    start = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    total = torch.zeros((), dtype=torch.float64)
    for number in range(tasks.count):
        task = Task(*map_leaves(lambda leaf, i=number: leaf[i], tasks))
        w = dict(start)
        for _ in range(STEPS):
            loss = F.cross_entropy(logits(w, task.support.x), task.support.y)
            grads = torch.autograd.grad(loss, [w[name] for name in moved], create_graph=order == 2)
            w |= {name: w[name] - LR * g for name, g in zip(moved, grads, strict=True)}
        total = total + F.cross_entropy(logits(w, task.query.x), task.query.y)
    found = torch.autograd.grad(total / tasks.count, list(start.values()))
    return dict(zip(start, found, strict=True))


@pytest.mark.parametrize("plan", [TaskPlan("loop"), TaskPlan("vmap")], ids=str)
@pytest.mark.parametrize("name", PAPERS)
def test_its_outer_gradient_is_that_of_the_paper(name: str, plan: TaskPlan) -> None:
    algorithm, tasks = shipped(name), image_tasks(3)
    expected = plain_gradient(dict(algorithm.named_parameters()), tasks, *PAPERS[name])
    torch.testing.assert_close(gradients(algorithm, tasks, plan), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", PAPERS)
def test_the_inner_loop_moves_what_the_paper_says_and_nothing_else(name: str) -> None:
    algorithm = shipped(name)
    task = Task(*map_leaves(lambda leaf: leaf[0], image_tasks(1)))
    weights = algorithm.adapt(task, steps=1)["weights"]
    assert weights.keys() == set(PAPERS[name][0])
    before = dict(algorithm.named_parameters())
    assert all(not torch.equal(w, before[parameter]) for parameter, w in weights.items())
