"""Outer gradients against finite differences and against each other, with every parameter adapted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metalearn.algorithms.maml import MAML
from metalearn.algorithms.protonet import ProtoNet
from metalearn.algorithms.reptile import Reptile
from metalearn.core import Algorithm, Task
from metalearn.engine.executor import TaskPlan, execute
from metalearn.models.conv4 import Conv4
from tests.reference.tasks import IMAGE, image_spec, image_tasks, with_draws
from tests.shipped import built

PLANS = [TaskPlan("loop"), TaskPlan("vmap"), TaskPlan("vmap", 2)]


def maml(order: int = 2, norm_statistics: str = "transductive", downsample: str = "stride") -> MAML:
    torch.manual_seed(0)
    model = built(Conv4, IMAGE, channels=4, norm_statistics=norm_statistics, downsample=downsample)
    algorithm = built(
        MAML, model, image_spec(), inner_lr=0.3, adaptation_steps=2, eval_adaptation_steps=3, order=order
    )
    return perturbed(algorithm)


def perturbed(algorithm: Algorithm) -> Algorithm:
    """float64, and no parameter at a special value: a norm's affine at (1, 0) hides errors."""
    algorithm.double()
    with torch.no_grad():
        for p in algorithm.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return algorithm


def protonet() -> ProtoNet:
    torch.manual_seed(0)
    return perturbed(
        built(ProtoNet, built(Conv4, IMAGE, channels=4, norm_statistics="running"), image_spec())
    )


def reptile() -> Reptile:
    torch.manual_seed(0)
    model = built(Conv4, IMAGE, channels=4)
    dials = {
        "adaptation_steps": 3,
        "eval_adaptation_steps": 4,
        "inner_batch_size": 4,
        "eval_inner_batch_size": 6,
    }
    return perturbed(built(Reptile, model, image_spec(), inner_lr=0.01, **dials))


def gradients(algorithm: Algorithm, tasks: Task, plan: TaskPlan) -> dict[str, Tensor]:
    execute(algorithm, tasks, plan)
    return {name: p.grad.clone() for name, p in algorithm.named_parameters() if p.requires_grad}


def directional(algorithm: Algorithm, tasks: Task, direction: dict[str, Tensor], step: float = 1e-7) -> float:
    """Central difference of the mean outer loss along a direction of all trainable parameters."""
    start = {name: p.detach().clone() for name, p in algorithm.named_parameters() if p.requires_grad}

    def loss_at(scale: float) -> float:
        shifted = {name: p + scale * direction[name] for name, p in start.items()}
        losses, _ = algorithm.call(shifted, "losses", tasks, TaskPlan("loop"))
        return float(losses.detach().mean())

    return (loss_at(step) - loss_at(-step)) / (2 * step)


def mismatch(algorithm: Algorithm, tasks: Task, num_directions: int = 4) -> float:
    """Largest relative gap between the gradient and finite differences over random directions."""
    grads = gradients(algorithm, tasks, TaskPlan("vmap"))
    norm = torch.cat([g.flatten() for g in grads.values()]).norm()
    gaps = []
    for seed in range(num_directions):
        rng = torch.Generator().manual_seed(seed)
        direction = {name: torch.randn(g.shape, generator=rng, dtype=g.dtype) for name, g in grads.items()}
        analytic = sum((grads[name] * direction[name]).sum() for name in grads)
        gaps.append(abs(float(analytic) - directional(algorithm, tasks, direction)) / float(norm))
    return max(gaps)


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("norm_statistics", ["transductive", "support", "support_and_one"])
def test_second_order_gradient_matches_finite_differences(norm_statistics: str, downsample: str) -> None:
    assert mismatch(maml(norm_statistics=norm_statistics, downsample=downsample), image_tasks(2)) < 1e-5


def test_first_order_gradient_fails_the_finite_difference_check() -> None:
    assert mismatch(maml(order=1), image_tasks(2)) > 1e-2


def test_protonet_gradient_matches_finite_differences() -> None:
    assert mismatch(protonet(), image_tasks(2)) < 1e-5


@pytest.mark.parametrize(
    "make", [maml, lambda: maml(order=1), lambda: maml(norm_statistics="support"), protonet, reptile]
)
@pytest.mark.parametrize("plan", PLANS[1:], ids=str)
def test_plans_give_the_same_gradient_in_every_parameter(make, plan: TaskPlan) -> None:
    algorithm = make()
    tasks = with_draws(algorithm, image_tasks(3))
    reference = gradients(algorithm, tasks, PLANS[0])
    for name, grad in gradients(algorithm, tasks, plan).items():
        assert reference[name].norm() > 1e-6 or "bias" in name, f"{name} has no gradient to compare"
        torch.testing.assert_close(
            grad, reference[name], rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("make", [maml, protonet, reptile])
def test_batch_gradient_is_the_mean_of_single_task_gradients(make) -> None:
    algorithm = make()
    tasks = with_draws(algorithm, image_tasks(3))
    batch = gradients(algorithm, tasks, TaskPlan("vmap"))
    singles = [
        gradients(algorithm, torch.utils._pytree.tree_map(lambda leaf, i=i: leaf[i : i + 1], tasks), PLANS[0])
        for i in range(3)
    ]
    for name, grad in batch.items():
        torch.testing.assert_close(
            grad, torch.stack([s[name] for s in singles]).mean(0), rtol=1e-9, atol=1e-12
        )
