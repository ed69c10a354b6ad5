from __future__ import annotations

import copy
import math
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


def updater(
    name: str = "sgd",
    clip: Clip | None = None,
    schedule: Callable[[int], float] = lambda step: 1.0,
    *,
    limit: int = 1,
) -> Updater:
    algorithm = ToyAlgorithm()
    return Updater(algorithm, OPTIMIZERS[name](algorithm.parameters()), schedule, clip or Clip(), limit=limit)


def push(u: Updater, step: int, grad: float, loss: float = 1.0) -> torch.Tensor:
    u.parameters[0].grad = torch.tensor([grad])
    return u.update(step, torch.tensor([loss, 1.0]), (torch.ones(1),))


def state(u: Updater) -> Any:
    return copy.deepcopy((u.algorithm.state_dict(), u.optimizer.state_dict()["state"]))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("grad", "loss"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan")), (1.0, float("inf"))]
)
@pytest.mark.parametrize("clip", [Clip(), Clip(norm=1.0), Clip(value=1.0)], ids=["free", "norm", "value"])
def test_update_that_is_not_finite_leaves_weights_and_optimizer_untouched(
    name: str, grad: float, loss: float, clip: Clip
) -> None:
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


@pytest.mark.parametrize(
    ("clip", "moved"), [(Clip(norm=0.5), 0.05), (Clip(value=0.25), 0.025), (Clip(norm=10.0), 0.2)]
)
def test_gradient_is_clipped(clip: Clip, moved: float) -> None:
    u = updater("sgd", clip)
    assert push(u, 0, -2.0).item() == 2.0  # the norm that is reported is the one before clipping
    assert u.parameters[0].item() == pytest.approx(moved, rel=1e-4)


def test_schedule_sets_the_rate_from_the_step_alone() -> None:
    u = updater(schedule=lambda step: 0.5**step)
    for step in (0, 3, 1):
        push(u, step, 1.0)
        assert u.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_refused_update_is_left_out_and_the_next_one_counts_as_if_it_had_not_been(name: str) -> None:
    skipping, clean = updater(name, limit=3), updater(name, limit=3)
    for step, grad in enumerate((1.0, float("nan"), float("inf"), 2.0)):
        push(skipping, step, grad)
        assert bool(skipping.bad) is not math.isfinite(grad)
        if math.isfinite(grad):
            push(clean, step, grad)
    assert str(state(skipping)) == str(state(clean))
    assert [skipping.bad_step.item(), skipping.row.item(), skipping.refused.item()] == [1, 0, 2]
    skipping.forget_refusals()
    assert skipping.bad_step.item() == HEALTHY


def test_after_so_many_refusals_in_a_row_nothing_is_applied_until_the_host_has_looked() -> None:
    u = updater(limit=3)
    for step in range(3):
        push(u, step, float("nan"))
    before = state(u)
    push(u, 3, 1.0)
    assert str(before) == str(state(u))
    assert [u.bad_step.item(), u.row.item()] == [0, 4]


def test_counts_of_a_checkpoint_go_on() -> None:
    u = updater(limit=3)
    u.count_refusals(7, 2)
    push(u, 0, float("nan"))
    push(u, 1, 1.0)
    assert [u.bad_step.item(), u.row.item(), u.refused.item()] == [0, 4, 9]


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_the_outer_step_of_an_algorithm_counts_the_updates_that_were_applied(name: str) -> None:
    u = updater(name, limit=3)
    for step, grad in enumerate([1.0, math.nan, 1.0, math.inf]):
        push(u, step, grad)
    assert u.algorithm.outer_step.item() == 2
    assert u.algorithm.outer_step.dtype == torch.int64
