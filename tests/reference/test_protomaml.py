"""Proto-MAML without a step is ProtoNet, and its outer gradient runs through the head's start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metalearn.algorithms.protomaml import ProtoMAML
from metalearn.algorithms.protonet import ProtoNet
from metalearn.core import Algorithm, Task, blank_query, map_leaves
from metalearn.engine.executor import TaskPlan, execute
from metalearn.models.conv4 import Conv4
from tests.reference.tasks import IMAGE, image_spec, image_tasks
from tests.shipped import built


def made(cls: type[Algorithm], **dials: object) -> Algorithm:
    torch.manual_seed(0)
    model = built(Conv4, IMAGE, channels=4, norm_statistics="support")
    algorithm: Algorithm = built(cls, model, image_spec(), **dials).double()
    return algorithm


def probabilities(algorithm: Algorithm, task: Task, *, steps: int) -> Tensor:
    adapted = algorithm.adapt(blank_query(task), steps=steps)
    return algorithm.predict(adapted, task.query.x, task.query.mask).softmax(-1)


def test_without_a_step_it_predicts_what_prototypes_predict() -> None:
    task = Task(*map_leaves(lambda leaf: leaf[0], image_tasks(1)))
    found, expected = (
        probabilities(made(ProtoMAML), task, steps=0),
        probabilities(made(ProtoNet), task, steps=0),
    )
    torch.testing.assert_close(found[:, :3], expected[:, :3], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found, probabilities(made(ProtoMAML), task, steps=1))


@pytest.mark.parametrize("order", [1, 2])
def test_outer_gradient_matches_finite_differences_in_second_order_only(order: int) -> None:
    """Of the first layer: the head's start is a function of it, whatever the order."""
    algorithm, tasks = made(ProtoMAML, order=order, adaptation_steps=2, inner_lr=0.05), image_tasks(2)
    execute(algorithm, tasks, TaskPlan("loop"))
    weight = algorithm.model.convs[0].weight
    assert weight.grad is not None
    direction = torch.randn_like(weight)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * 1e-6)
            ends.append(execute(algorithm, tasks, TaskPlan("loop"))[0].mean())
            weight.sub_(direction, alpha=sign * 1e-6)
    execute(algorithm, tasks, TaskPlan("loop"))
    difference, found = (ends[0] - ends[1]) / 2e-6, (weight.grad * direction).sum()
    assert (abs(difference - found) <= 1e-5 * abs(difference)) == (order == 2), (difference, found)


def test_the_head_has_nothing_to_train_and_takes_any_way() -> None:
    algorithm = made(ProtoMAML)
    assert {name for name, p in algorithm.named_parameters() if not p.requires_grad} == {
        "head.weight",
        "head.bias",
    }
    algorithm.check(image_spec(way=5))


def test_a_loop_that_leaves_out_the_head_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"algo.adapts=model leaves out the head, which is made for each task"
    ):
        made(ProtoMAML, adapts="model")
