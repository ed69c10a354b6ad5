"""CAVIA against an independent loop in plain PyTorch, for an MLP and a conv net, and without its context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metalearn.algorithms.cavia import CAVIA
from metalearn.build.objects import build_optimizer
from metalearn.config.compose import compose
from metalearn.core import Examples, InputSpec, Task, TaskBatch, TaskSpec, blank_query
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.errors import ConfigError
from metalearn.models.base import Model
from metalearn.models.conv4 import Conv4
from metalearn.models.mlp import MLP
from metalearn.objectives import Regression
from tests.reference.tasks import IMAGE, image_spec, image_tasks
from tests.reference.test_gradients import mismatch, perturbed
from tests.shipped import built

POINT = InputSpec((2,))
CURVES = TaskSpec("regression", Regression(), 1, POINT, support_size=6, query_size=4)
STEPS, CONTEXT = 2, 3
PLANS = [TaskPlan("loop"), TaskPlan("vmap")]


def made(model: nn.Module, spec: TaskSpec, **dials: Any) -> CAVIA:
    torch.manual_seed(1)
    common = {"num_context": CONTEXT, "inner_lr": 0.5, "adaptation_steps": STEPS}
    algorithm: CAVIA = built(CAVIA, model, spec, **{**common, **dials})
    return algorithm


def mlp(init: str = "default", **dials: Any) -> CAVIA:
    torch.manual_seed(0)
    return made(built(MLP, POINT, hidden=[5, 4], init=init, head_init="default"), CURVES, **dials)


def conv(init: str = "xavier", norm_statistics: str = "transductive", **dials: Any) -> CAVIA:
    torch.manual_seed(0)
    model = built(Conv4, IMAGE, channels=4, norm_statistics=norm_statistics, init=init)
    return made(model, image_spec(), **dials)


def curves(count: int = 2) -> TaskBatch:
    rng = torch.Generator().manual_seed(0)

    def rows(number: int) -> Examples:
        x = torch.randn(count, number, 2, generator=rng, dtype=torch.float64)
        y = torch.sin(2 * x).sum(-1, keepdim=True) * torch.arange(1, count + 1)[:, None, None]
        return Examples(x, y, torch.ones(count, number, dtype=torch.bool))

    return TaskBatch(rows(6), rows(4), torch.arange(count))


def only(tasks: Task) -> Task:
    return Task(*tree_map(lambda leaf: leaf[0], tuple(tasks)))


def plain_mlp(weights: dict[str, Tensor], context: Tensor, x: Tensor) -> Tensor:
    x = torch.cat([x, context.repeat(len(x), 1)], 1)
    for i in range(2):
        x = F.relu(F.linear(x, weights[f"model.layers.{i}.weight"], weights[f"model.layers.{i}.bias"]))
    return F.linear(x, weights["head.weight"], weights["head.bias"])


def plain_conv(weights: dict[str, Tensor], context: Tensor, x: Tensor) -> Tensor:
    for i in range(4):
        x = F.conv2d(x, weights[f"model.convs.{i}.weight"], stride=2, padding=1)
        affine = (weights[f"model.bns.{i}.{name}"] for name in ("weight", "bias"))
        x = F.batch_norm(x, None, None, *affine, training=True)
        if i == 2:
            both = F.linear(context, weights["model.film.weight"], weights["model.film.bias"])
            x = (1 + both[:4, None, None]) * x + both[4:, None, None]
        x = F.relu(x)
    return F.linear(x.mean((-2, -1)), weights["head.weight"], weights["head.bias"])


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize(
    ("make", "tasks", "network", "loss"),
    [(mlp, curves(1), plain_mlp, F.mse_loss), (conv, image_tasks(1), plain_conv, F.cross_entropy)],
    ids=["mlp", "conv4"],
)
def test_loss_and_gradient_are_those_of_a_plain_loop(
    make: Callable[..., CAVIA], tasks: Task, network: Any, loss: Any, plan: TaskPlan, order: int
) -> None:
    algorithm, task = perturbed(make(order=order)), only(tasks)
    weights = {
        name: p.detach().clone().requires_grad_()
        for name, p in algorithm.named_parameters()
        if p.requires_grad
    }
    context = torch.zeros(CONTEXT, dtype=torch.float64, requires_grad=True)
    for _ in range(STEPS):
        value = loss(network(weights, context, task.support.x), task.support.y)
        (slope,) = torch.autograd.grad(value, context, create_graph=True)
        context = context - 0.5 * (slope if order == 2 else slope.detach())
    assert context.norm() > 1e-3
    total = loss(network(weights, context, task.query.x), task.query.y)
    grads = torch.autograd.grad(total, list(weights.values()))
    sums = Executor(algorithm, plan).sums(tasks)
    torch.testing.assert_close(sums.losses[0], total.detach(), rtol=1e-9, atol=0)
    assert sums.grads.keys() == weights.keys()
    for name, grad in zip(weights, grads, strict=True):
        torch.testing.assert_close(sums.grads[name], grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("norm_statistics", ["transductive", "support"])
def test_the_gradient_of_a_conv_net_matches_finite_differences(norm_statistics: str) -> None:
    assert mismatch(perturbed(conv(norm_statistics=norm_statistics)), image_tasks(2)) < 1e-5


def test_the_gradient_of_an_mlp_matches_finite_differences() -> None:
    assert mismatch(perturbed(mlp()), curves()) < 1e-5


def test_the_first_order_gradient_fails_the_finite_difference_check() -> None:
    assert mismatch(perturbed(mlp(order=1)), curves()) > 1e-2


def test_a_context_of_zeros_gives_the_mlp_without_one() -> None:
    algorithm, task = mlp().double(), only(curves())
    plain = built(MLP, POINT, hidden=[5, 4]).double()
    state = algorithm.model.state_dict()
    state["layers.0.weight"] = state["layers.0.weight"][:, :2]
    plain.load_state_dict({name: value for name, value in state.items() if name != "context"})
    found = algorithm.predict(algorithm.adapt(blank_query(task), steps=0), task.query.x, task.query.mask)
    torch.testing.assert_close(found, algorithm.head(plain(task.query.x)[0]), rtol=1e-12, atol=0)


def test_a_context_of_zeros_gives_the_conv_net_without_one_where_biases_start_at_zero() -> None:
    algorithm, task = conv().double(), only(image_tasks(1))
    plain = built(Conv4, IMAGE, channels=4).double()
    state = algorithm.model.state_dict()
    own = {name: value for name, value in state.items() if not name.startswith(("context", "film"))}
    plain.load_state_dict(own)
    found = algorithm.predict(algorithm.adapt(blank_query(task), steps=0), task.query.x, task.query.mask)
    torch.testing.assert_close(found, algorithm.head(plain(task.query.x)[0]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [mlp, conv])
def test_the_context_alone_is_adapted_from_zero_and_no_optimizer_moves_it(
    make: Callable[..., CAVIA],
) -> None:
    algorithm = make().double()
    task = only(curves() if make is mlp else image_tasks(1))
    with torch.no_grad():
        algorithm.model.context.fill_(7.0)  # whatever stands there, a task starts at 0
    for steps in (0, 1):
        weights = algorithm.adapt(blank_query(task), steps=steps)["weights"]
        assert weights.keys() == {"model.context"}
        assert (weights["model.context"].norm() > 0) == (steps > 0)
    optimizer = build_optimizer(compose(["algo=cavia"]), algorithm)
    assert optimizer is not None
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(algorithm.model.context) not in moved
    assert len(moved) == len(list(algorithm.parameters())) - 1


@pytest.mark.parametrize("make", [mlp, conv])
def test_a_model_that_was_lowered_before_lowers_what_reads_the_context_too(
    make: Callable[..., CAVIA], monkeypatch: pytest.MonkeyPatch
) -> None:
    """device.precision=bfloat16 speaks to a model before the method does."""
    for cls in (MLP, Conv4):
        monkeypatch.setattr(cls, "add_context", lowered_first(cls.add_context))
    algorithm = make()
    task = only(curves() if make is mlp else image_tasks(1))
    task = tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, task)
    adapted = algorithm.adapt(blank_query(task), steps=1)
    found = algorithm.predict(adapted, task.query.x, task.query.mask)
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def lowered_first(add_context: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
    def add(model: Model, num_context: int) -> None:
        model.lower(torch.bfloat16)
        add_context(model, num_context)

    return add


class Closed(Model):
    """Without a place for context parameters."""

    out_features = 2

    def forward(self, x: Tensor, given: Any = None, mask: Any = None, step: Any = 0) -> tuple[Tensor, Any]:
        return x, ()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: mlp(num_context=0), "algo.num_context=0, but context parameters are all that is adapted"),
        (lambda: mlp(order=3), "algo.order=3 is none of 1, 2"),
        (
            lambda: made(Closed(init="default", head_init="default"), CURVES),
            "algo=cavia needs a model with a place for context parameters, which Closed has not; choose",
        ),
        (
            lambda: made(built(MLP, POINT, hidden=[]), CURVES),
            "algo=cavia needs a layer that reads context parameters, but the model has no hidden layer",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_its_constructor(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    "word",
    [
        *(
            "algo.num_context=0",
            "algo.inner_lr=0",
            "algo.adaptation_steps=-1",
            "algo.eval_adaptation_steps=-1",
        ),
        *("algo.order=0", "algo.adapts=all", "algo.inner_optimizer=adam"),
    ],
)
def test_a_wrong_value_is_refused_before_torch_is_imported(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        compose(["algo=cavia", word])
