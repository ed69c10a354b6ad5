"""`algo.proximal`: λ/2·‖w − start‖² in the inner loss of MAML."""

from __future__ import annotations

from typing import Any

import torch

from metalearn.algorithms.maml import MAML
from metalearn.algorithms.protomaml import ProtoMAML
from metalearn.core import Algorithm, Task, map_leaves
from metalearn.engine.executor import TaskPlan, execute
from metalearn.models.conv4 import Conv4
from tests.reference.tasks import IMAGE, image_spec, image_tasks
from tests.reference.test_gradients import gradients, mismatch, perturbed
from tests.shipped import built

RATE, PROXIMAL = 0.1, 0.5


def made(cls: type[Algorithm] = MAML, **dials: Any) -> Any:
    torch.manual_seed(0)
    dials = {"inner_lr": RATE, "adaptation_steps": 3, "proximal": PROXIMAL, **dials}
    return perturbed(built(cls, built(Conv4, IMAGE, channels=4), image_spec(), **dials))


def test_an_inner_step_goes_down_the_loss_and_back_to_the_start() -> None:
    algorithm = made()
    task = Task(*map_leaves(lambda leaf: leaf[0], image_tasks(1)))
    path = [adapted["weights"] for adapted in algorithm.adapt_path(task, counts=[0, 1, 2])]
    start, before, after = ({name: w.detach() for name, w in weights.items()} for weights in path)
    leaves = {name: w.clone().requires_grad_() for name, w in before.items()}
    loss = algorithm.support_loss(leaves, task.support, 1)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    for (name, w), grad in zip(before.items(), grads, strict=True):
        expected = w - RATE * (grad + PROXIMAL * (w - start[name]))
        torch.testing.assert_close(after[name], expected, rtol=1e-10, atol=1e-12)


def test_a_larger_one_keeps_the_weights_nearer() -> None:
    task = Task(*map_leaves(lambda leaf: leaf[0], image_tasks(1)))

    def way(proximal: float) -> float:
        algorithm = made(proximal=proximal)
        weights = algorithm.adapt(task, steps=20)["weights"]
        start = dict(algorithm.named_parameters())
        return sum(float((w - start[name]).detach().square().sum()) for name, w in weights.items())

    assert way(4.0) < 0.5 * way(0.5) < 0.5 * way(0.0)


def test_the_outer_gradient_goes_through_it() -> None:
    """Through the start as well, which the inner loss looks back at."""
    assert mismatch(made(), image_tasks(2)) < 1e-5
    assert mismatch(made(order=1), image_tasks(2)) > 1e-2


def test_the_outer_gradient_goes_through_a_start_that_is_made_for_the_task() -> None:
    algorithm = made(ProtoMAML)
    weight = algorithm.model.convs[0].weight
    direction = torch.randn_like(weight)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * 1e-6)
            ends.append(execute(algorithm, image_tasks(2), TaskPlan("loop"))[0].mean())
            weight.sub_(direction, alpha=sign * 1e-6)
    execute(algorithm, image_tasks(2), TaskPlan("loop"))
    difference, found = (ends[0] - ends[1]) / 2e-6, (weight.grad * direction).sum()
    torch.testing.assert_close(found, difference, rtol=1e-5, atol=1e-9)


def test_plans_give_the_same_gradient_with_it() -> None:
    algorithm = made()
    expected = gradients(algorithm, image_tasks(3), TaskPlan("loop"))
    for plan in (TaskPlan("vmap"), TaskPlan("vmap", 2)):
        for name, grad in gradients(algorithm, image_tasks(3), plan).items():
            torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-12)


def test_the_protocol_names_it_where_there_is_one() -> None:
    assert made().protocol()["proximal"] == PROXIMAL
    assert "proximal" not in made(proximal=0.0).protocol()
