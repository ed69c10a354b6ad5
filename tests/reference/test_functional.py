"""Inner optimisers against `torch.optim`, and methods against hand-made arithmetic."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from metalearn.algorithms.maml import MAML
from metalearn.algorithms.pixel_nn import PixelNN
from metalearn.algorithms.protonet import ProtoNet
from metalearn.core import Examples, InputSpec, Task, TaskSpec, blank_query
from metalearn.functional import Adam, Loss, Momentum, Update, descend
from metalearn.models.base import Model, Norm
from metalearn.objectives import Classification
from tests.shipped import built

A = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
START = torch.linspace(-1, 1, 6, dtype=torch.float64)


def bowl(weights: dict[str, Tensor], step: int = 0) -> Tensor:
    return ((A @ weights["w"] - step) ** 2).mean() + weights["w"].cos().sum()


def torch_steps(make_optimizer, steps: int) -> Tensor:
    w = START.clone().requires_grad_()
    optimizer = make_optimizer([w])
    for step in range(steps):
        optimizer.zero_grad()
        bowl({"w": w}, step).backward()
        optimizer.step()
    return w.detach()


def end(update: Update, start: dict[str, Tensor], steps: int, loss: Loss = bowl) -> dict[str, Tensor]:
    return next(descend(loss, start, update, counts=[steps], first_order=True))


def test_adam_equals_torch_adam_with_beta1_zero() -> None:
    expected = torch_steps(lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.999)), 7)
    fresh = {"w": torch.zeros_like(START)}, torch.tensor(0)
    torch.testing.assert_close(end(Adam(*fresh, lr=0.01), {"w": START}, 7)["w"], expected)
    # Seven steps at once are three and then four that start from what the three left.
    adam = Adam(*fresh, lr=0.01)
    weights = end(adam, {"w": START}, 3)
    weights = end(Adam(adam.second, torch.tensor(3), lr=0.01), weights, 4, lambda w, step: bowl(w, step + 3))
    torch.testing.assert_close(weights["w"], expected)


def test_momentum_equals_torch_sgd() -> None:
    dials = {"lr": 0.01, "momentum": 0.9, "dampening": 0.9, "weight_decay": 0.001}
    weights = end(Momentum(**dials), {"w": START}, 7)
    torch.testing.assert_close(weights["w"], torch_steps(lambda p: torch.optim.SGD(p, **dials), 7))


def test_the_loss_before_each_step_is_collected() -> None:
    losses: list[Tensor] = []
    path = list(
        descend(
            bowl,
            {"w": START},
            Momentum(lr=0.01, momentum=0, dampening=0, weight_decay=0),
            counts=[0, 1, 3],
            first_order=True,
            losses=losses,
        )
    )
    assert [w["w"].requires_grad for w in path] == [False] * 3
    torch.testing.assert_close(losses[:2], [bowl(path[0], 0), bowl(path[1], 1)])
    assert len(losses) == 3


@pytest.mark.parametrize("mapped", [False, True], ids=["alone", "under vmap"])
@pytest.mark.parametrize(("first_order", "expected"), [(False, 2 * 2.0 * 0.7**2), (True, 2 * 2.0 * 0.7)])
def test_gradient_through_one_step_by_hand(first_order: bool, expected: float, mapped: bool) -> None:
    # loss(w) = a w²/2, one step: w' = w (1 - lr a); d(w'²)/dw = 2 w (1 - lr a)²; first order drops one
    # factor.
    a, lr, w = 3.0, 0.1, torch.tensor(2.0, requires_grad=True)

    def after(w: Tensor) -> Tensor:
        update = lambda weights, grads, step: {"w": weights["w"] - lr * grads["w"]}  # noqa: E731
        adapted = next(
            descend(
                lambda p, step: a * p["w"] ** 2 / 2, {"w": w}, update, counts=[1], first_order=first_order
            )
        )
        return adapted["w"] ** 2

    value = torch.vmap(after)(w[None])[0] if mapped else after(w)
    (grad,) = torch.autograd.grad(value, w)
    torch.testing.assert_close(grad, torch.tensor(expected))


@pytest.mark.parametrize("mapped", [False, True], ids=["alone", "under vmap"])
def test_a_weight_that_starts_from_another_is_a_variable_of_its_own(mapped: bool) -> None:
    """As a head that is computed from the body: the body's gradient does not go through the head."""
    body = torch.tensor([3.0], requires_grad=True)

    def first_gradient(body: Tensor) -> Tensor:
        start = {"body": body, "head": 2 * body}
        keep = lambda weights, grads, step: grads  # noqa: E731
        return next(
            descend(lambda w, step: (w["body"] * w["head"]).sum(), start, keep, counts=[1], first_order=False)
        )["body"]

    grad = torch.vmap(first_gradient)(body[None])[0] if mapped else first_gradient(body)
    torch.testing.assert_close(grad, torch.tensor([6.0]))  # head; through both it would be 12
    (outer,) = torch.autograd.grad(grad.sum(), body)
    torch.testing.assert_close(outer, torch.tensor([2.0]))  # the outer gradient does go through it


@pytest.mark.parametrize("mapped", [False, True], ids=["alone", "under vmap"])
def test_a_loss_that_looks_back_at_the_start_is_differentiated_by_the_weights_alone(mapped: bool) -> None:
    """As a proximal term is: the first gradient of w·w₀ is w₀, not 2·w₀."""
    start = torch.tensor([3.0], requires_grad=True)

    def first_gradient(w: Tensor) -> Tensor:
        keep = lambda weights, grads, step: grads  # noqa: E731
        return next(
            descend(lambda v, step: (v["w"] * w).sum(), {"w": w}, keep, counts=[1], first_order=False)
        )["w"]

    grad = torch.vmap(first_gradient)(start[None])[0] if mapped else first_gradient(start)
    torch.testing.assert_close(grad, torch.tensor([3.0]))
    (outer,) = torch.autograd.grad(grad.sum(), start)
    torch.testing.assert_close(outer, torch.tensor([1.0]))


class Identity(Model):
    """Features are the inputs, so that distances can be worked out by hand."""

    def __init__(self, norm_statistics: str = "support") -> None:
        super().__init__(init="default", head_init="default")
        self.out_features, self.norm_statistics = 2, norm_statistics

    def forward(self, x, given=None, mask=None, step=0):
        return x, ()


def plane_task() -> tuple[TaskSpec, Task]:
    support = Examples(
        torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]]),
        torch.tensor([0, 0, 1, 1]),
        torch.ones(4, dtype=torch.bool),
    )
    query = Examples(
        torch.tensor([[1.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool)
    )
    return TaskSpec("classification", Classification(), 2, InputSpec((2,)), 4, 2, 2), Task(
        support, query, torch.tensor(0)
    )


def test_protonet_logits_are_negative_squared_distances_to_class_means() -> None:
    spec, task = plane_task()
    algorithm = built(ProtoNet, Identity(), spec)
    logits = algorithm.predict(algorithm.adapt(blank_query(task), steps=0), task.query.x, task.query.mask)
    # Class means (0, 1) and (4, 1); queries at distance 1 and 3 from them.
    torch.testing.assert_close(logits[:, :2], torch.tensor([[-1.0, -9.0], [-9.0, -1.0]]))
    assert (logits[:, 2:] == torch.finfo(torch.float32).min).all(), "classes without support must come last"


def test_pixel_nn_takes_the_class_of_the_nearest_row() -> None:
    spec, task = plane_task()
    algorithm = built(PixelNN, Identity(), spec, distance="euclidean")
    assert not list(algorithm.parameters())
    prediction = algorithm.predict(algorithm.adapt(task, steps=0), task.query.x, task.query.mask)
    assert prediction.argmax(-1).tolist() == [0, 1]


def test_norm_equals_batch_norm_and_returns_its_statistics() -> None:
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    norm = Norm(3)
    y, (mean, var) = norm(x)
    torch.testing.assert_close(
        y, torch.nn.functional.batch_norm(x, None, None, training=True), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(norm(x[:2], given=(mean, var))[0], y[:2])


def test_norm_ignores_masked_rows() -> None:
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([True, True, True, False, False])
    y, statistics = Norm(3)(x, mask=mask)
    expected, expected_statistics = Norm(3)(x[:3])
    torch.testing.assert_close(y[:3], expected)
    torch.testing.assert_close(statistics, expected_statistics)


@pytest.mark.slow  # a plan that the benchmark compiles notices it too
def test_a_compiled_inner_step_on_a_matrix_product_is_that_of_pytorch() -> None:
    """Inductor of torch 2.14 makes torch.add(w, x @ y, alpha=…) one addmm, and forgets alpha."""
    generator = torch.Generator().manual_seed(0)
    w, x, y = (torch.randn(shape, generator=generator) for shape in ((4, 4), (3, 4), (3, 4)))
    maml = cast(MAML, SimpleNamespace(inner_lr=0.1))

    def step(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return MAML.update(maml, {"w": w}, {"w": x.T @ y}, 0)["w"]

    found = torch.compile(step, fullgraph=True)(w, x, y)
    torch.testing.assert_close(found, w - 0.1 * x.T @ y)
