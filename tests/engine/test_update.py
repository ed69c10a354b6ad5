from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from metalearn.engine.update import HEALTHY, Clip, Updater
from tests.engine.toy import ToyAlgorithm

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),  # has no fused kernel
}


def updater(name: str = "sgd", clip: Clip | None = None, schedule: Callable[[int], float] = lambda step: 1.0) -> Updater:
    algorithm = ToyAlgorithm()
    return Updater(algorithm, OPTIMIZERS[name](algorithm.parameters()), schedule, clip or Clip())


def push(u: Updater, step: int, grad: float, loss: float = 1.0) -> torch.Tensor:
    u.parameters[0].grad = torch.tensor([grad])
    return u.update(step, torch.tensor([loss, 1.0]), (torch.ones(1),))


def state(u: Updater) -> Any:
    return copy.deepcopy((u.algorithm.state_dict(), u.optimizer.state_dict()["state"]))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("grad", "loss"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan")), (1.0, float("inf"))])
@pytest.mark.parametrize("clip", [Clip(), Clip(norm=1.0), Clip(value=1.0)], ids=["free", "norm", "value"])
def test_update_that_is_not_finite_leaves_weights_and_optimizer_untouched(name: str, grad: float, loss: float, clip: Clip) -> None:
    u = updater(name, clip)
    push(u, 0, 1.0)
    before = state(u)
    push(u, 1, grad, loss)
    assert str(before) == str(state(u))
    assert u.bad_step.item() == 1


def test_first_bad_step_is_kept_and_later_good_ones_change_nothing() -> None:
    u = updater()
    push(u, 0, 1.0)
    push(u, 1, float("nan"))
    before = state(u)
    push(u, 2, 1.0)
    push(u, 3, float("nan"))
    assert u.bad_step.item() == 1
    assert str(before) == str(state(u))


def test_healthy_update_moves_weights_and_running_averages() -> None:
    u = updater()
    assert push(u, 0, 2.0).item() == 2.0
    assert u.bad_step.item() == HEALTHY
    assert u.parameters[0].item() == pytest.approx(-0.2)
    assert u.algorithm.running.item() == pytest.approx(0.1)


@pytest.mark.parametrize(("clip", "moved"), [(Clip(norm=0.5), 0.05), (Clip(value=0.25), 0.025), (Clip(norm=10.0), 0.2)])
def test_gradient_is_clipped(clip: Clip, moved: float) -> None:
    u = updater("sgd", clip)
    assert push(u, 0, -2.0).item() == 2.0  # the norm that is reported is the one before clipping
    assert u.parameters[0].item() == pytest.approx(moved, rel=1e-4)


def test_schedule_sets_the_rate_from_the_step_alone() -> None:
    u = updater(schedule=lambda step: 0.5**step)
    for step in (0, 3, 1):
        push(u, step, 1.0)
        assert u.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**step
