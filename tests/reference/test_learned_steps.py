"""Methods that learn the inner step itself: by hand, as MAML where what they learn is neutral, and their
outer gradients with respect to what they learn against finite differences.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms.maml import MAML
from metalearn.algorithms.meta_curvature import MetaCurvature, curve
from metalearn.algorithms.meta_sgd import MetaSGD
from metalearn.algorithms.t_net import TNet
from metalearn.build.objects import grouped
from metalearn.config.compose import compose
from metalearn.core import Algorithm, Examples, InputSpec, Task, TaskBatch, TaskSpec, map_leaves
from metalearn.engine.executor import TaskPlan, execute
from metalearn.errors import ConfigError
from metalearn.models.conv4 import Conv4
from metalearn.models.mlp import MLP
from metalearn.objectives import Regression
from metalearn.testing.algorithms import (
    Trial,
    a_compiled_gradient_is_that_of_the_loop,
    it_draws_no_random_numbers_and_keeps_nothing_between_tasks,
    loop_equals_vmap,
)
from metalearn.testing.checking import Check, run
from tests.in_memory import InMemory
from tests.reference.tasks import IMAGE, image_spec, image_tasks, with_draws
from tests.shipped import built

LEARNED = {MetaSGD: "rates", MetaCurvature: "matrices", TNet: "transforms"}
X, Y = torch.tensor([[1.0], [3.0]]).double(), torch.tensor([[2.0], [1.0]]).double()
NAMES = ("model.layers.0.weight", "model.layers.0.bias", "head.weight", "head.bias")


def on_images(cls: type[Algorithm], **dials: Any) -> Any:
    torch.manual_seed(0)
    model = built(Conv4, IMAGE, channels=4)
    given = {"inner_lr": 0.125, "adaptation_steps": 2, **dials}
    return built(cls, model, image_spec(), **given).double()


def on_curves(cls: type[Algorithm], hidden: tuple[int, ...] = (), **dials: Any) -> Any:
    torch.manual_seed(0)
    spec = TaskSpec("regression", Regression(), 1, InputSpec((1,)), 2, 2, 0, 0)
    model = built(MLP, InputSpec((1,)), hidden=hidden, init="xavier")
    return built(cls, model, spec, **dials).double()


def curve_task(**draws: Tensor) -> Task:
    rows = Examples(X, Y, torch.ones(2, dtype=torch.bool))
    return Task(rows, rows, torch.tensor(0), draws=draws)


def adapted(algorithm: Any, task: Task | None = None) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = algorithm.adapt(task or curve_task(), steps=1)["weights"]
    return map_leaves(Tensor.detach, weights)


def set_line(algorithm: Any, weight: float, bias: float) -> None:
    with torch.no_grad():
        algorithm.head.weight.fill_(weight)
        algorithm.head.bias.fill_(bias)


def moved(algorithm: Any, scale: float = 0.3) -> Any:
    """What is learned of the step, away from where it starts."""
    with torch.no_grad():
        for p in getattr(algorithm, LEARNED[type(algorithm)]).parameters():
            p.add_(scale * torch.randn_like(p))
    return algorithm


def slopes(predicted: Tensor) -> tuple[float, float]:
    """∂/∂weight and ∂/∂bias of the mean square of predicted − Y, for a line."""
    error = predicted - Y
    return float((2 * error * X).mean()), float((2 * error).mean())


# ---------------------------------------------------------------- one step by hand


def test_meta_sgd_moves_each_weight_by_its_own_rate() -> None:
    algorithm = on_curves(MetaSGD)
    set_line(algorithm, 0.5, -1.0)
    with torch.no_grad():
        algorithm.rates[0].fill_(0.1)
        algorithm.rates[1].fill_(-0.2)  # rates may be negative
    by_weight, by_bias = slopes(0.5 * X - 1.0)
    assert by_weight == pytest.approx((2 * -2.5 * 1 + 2 * -0.5 * 3) / 2)
    found = adapted(algorithm)
    assert float(found["head.weight"]) == pytest.approx(0.5 - 0.1 * by_weight, abs=1e-12)
    assert float(found["head.bias"]) == pytest.approx(-1.0 + 0.2 * by_bias, abs=1e-12)


def test_meta_curvature_multiplies_the_step_by_its_matrices() -> None:
    algorithm = on_curves(MetaCurvature, inner_lr=0.1)
    set_line(algorithm, 0.5, -1.0)
    (of_outputs, of_inputs), (of_bias,) = algorithm.matrices
    with torch.no_grad():
        of_outputs.fill_(2.0)
        of_inputs.fill_(-3.0)
        of_bias.fill_(0.5)
    by_weight, by_bias = slopes(0.5 * X - 1.0)
    found = adapted(algorithm)
    assert float(found["head.weight"]) == pytest.approx(0.5 - 0.1 * 2 * -3 * by_weight, abs=1e-12)
    assert float(found["head.bias"]) == pytest.approx(-1.0 - 0.1 * 0.5 * by_bias, abs=1e-12)


@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (4, 3), (5,)], ids=str)
def test_the_curved_gradient_is_the_kronecker_product_times_the_flat_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    sizes = [*shape[:2], *([shape[2] * shape[3]] if len(shape) == 4 else [])]
    grad = torch.randn(shape, dtype=torch.float64)
    matrices = [torch.randn(size, size, dtype=torch.float64) for size in sizes]
    dense = reduce(torch.kron, matrices) @ grad.flatten()
    torch.testing.assert_close(curve(grad, matrices), dense.view(shape), rtol=1e-12, atol=1e-12)


def test_t_net_steps_on_the_layer_before_its_matrix() -> None:
    algorithm = on_curves(TNet, inner_lr=0.1)
    set_line(algorithm, 0.5, -1.0)
    with torch.no_grad():
        algorithm.transforms[0].fill_(3.0)
    by_weight, by_bias = (3 * slope for slope in slopes(3 * (0.5 * X - 1.0)))
    found = adapted(algorithm)
    weight, bias = 0.5 - 0.1 * by_weight, -1.0 - 0.1 * by_bias
    assert float(found["head.weight"]) == pytest.approx(weight, abs=1e-12)
    assert float(found["head.bias"]) == pytest.approx(bias, abs=1e-12)
    prediction = algorithm.predict(algorithm.adapt(curve_task(), steps=1), X, torch.ones(2).bool())
    torch.testing.assert_close(prediction, 3 * (weight * X + bias))


def test_t_net_is_layers_each_followed_by_a_matrix_or_a_convolution_of_one_pixel() -> None:
    lines = moved(on_curves(TNet, hidden=(4,)))
    w, b = lines.model.layers[0].weight, lines.model.layers[0].bias
    v, c = lines.head.weight, lines.head.bias
    first, second = lines.transforms
    hidden = F.relu((X @ w.T + b) @ first.T)
    torch.testing.assert_close(lines.network(X)[0], (hidden @ v.T + c) @ second.T, rtol=1e-12, atol=1e-12)

    images, x = moved(on_images(TNet)), image_tasks(1).support.x[0]
    expected = x
    for conv, norm, transform in zip(images.model.convs, images.model.bns, images.transforms, strict=False):
        outputs = F.conv2d(expected, conv.weight, stride=2, padding=1)
        outputs = F.conv2d(outputs, transform[:, :, None, None])
        expected = F.relu(F.batch_norm(outputs, None, None, norm.weight, norm.bias, training=True))
    scores = images.head(expected.mean((-2, -1))) @ images.transforms[-1].T
    torch.testing.assert_close(images.network(x)[0], scores, rtol=1e-9, atol=1e-10)


def test_a_mask_lets_whole_rows_move_and_its_odds_have_the_gradient_of_the_soft_one() -> None:
    algorithm = moved(on_curves(TNet, hidden=(4,), masks=True, inner_lr=0.1, transforms_lr=None))
    with torch.no_grad():
        for log_odds in algorithm.log_odds:
            log_odds.copy_(0.5 * torch.randn_like(log_odds))
    uniform = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.7], dtype=torch.float64)
    task = curve_task(masks=uniform)
    parameters = dict(algorithm.named_parameters())
    w, b, v, c = (parameters[name].detach().requires_grad_() for name in NAMES)
    first, second = (t.detach() for t in algorithm.transforms)

    def loss(w: Tensor, b: Tensor, v: Tensor, c: Tensor) -> Tensor:
        return (((F.relu((X @ w.T + b) @ first.T) @ v.T + c) @ second.T - Y) ** 2).mean()

    odds = torch.cat([p.detach() for p in algorithm.log_odds]).requires_grad_()
    soft = torch.sigmoid(odds + uniform.log() - (1 - uniform).log())
    hard = (soft.detach() > 0.5).double()
    assert {0.0, 1.0} == set(hard.tolist())
    grads = torch.autograd.grad(loss(w, b, v, c), (w, b, v, c), create_graph=True)
    rows = (slice(0, 4), slice(0, 4), slice(4, 5), slice(4, 5))
    through = hard.clone().requires_grad_()
    steps = [
        0.1 * through[part].view(-1, *[1] * (g.ndim - 1)) * g for part, g in zip(rows, grads, strict=True)
    ]
    expected = [start - step for start, step in zip((w, b, v, c), steps, strict=True)]
    found = adapted(algorithm, task)
    for name, value in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    (of_mask,) = torch.autograd.grad(loss(*expected), through)
    (of_odds,) = torch.autograd.grad(soft, odds, of_mask)
    execute(algorithm, TaskBatch(*map_leaves(lambda leaf: leaf[None], tuple(task))), TaskPlan("vmap"))
    torch.testing.assert_close(
        torch.cat([p.grad for p in algorithm.log_odds]), of_odds, rtol=1e-9, atol=1e-12
    )


# ---------------------------------------------------------------- neutral, they are MAML


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("cls", LEARNED, ids=lambda cls: cls.__name__)
def test_where_what_it_learns_is_neutral_it_is_maml(cls: type[Algorithm], order: int) -> None:
    tasks, plain, method = image_tasks(3), on_images(MAML, order=order), on_images(cls, order=order)
    expected, found = (execute(algorithm, tasks, TaskPlan("vmap"))[0] for algorithm in (plain, method))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grads = {name: p.grad for name, p in method.named_parameters()}
    for name, p in plain.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, rtol=1e-9, atol=1e-12)
    assert all(p.grad.norm() > 0 for p in getattr(method, LEARNED[cls]).parameters())


# ---------------------------------------------------------------- outer gradients


def mismatch(algorithm: Algorithm, learned: dict[str, nn.Parameter], num_directions: int = 4) -> float:
    """Largest relative gap between the outer gradient with respect to these parameters and central
    differences along random directions of them.
    """
    tasks = with_draws(algorithm, image_tasks(2))
    execute(algorithm, tasks, TaskPlan("vmap"))
    start = {name: p.detach().clone() for name, p in learned.items()}
    grads = {name: p.grad.clone() for name, p in learned.items() if p.grad is not None}
    size = torch.cat([g.flatten() for g in grads.values()]).norm()

    def loss_at(step: float, direction: dict[str, Tensor]) -> float:
        shifted = {name: p + step * direction[name] for name, p in start.items()}
        return float(algorithm.call(shifted, "losses", tasks, TaskPlan("loop"))[0].detach().mean())

    gaps = []
    for seed in range(num_directions):
        rng = torch.Generator().manual_seed(seed)
        direction = {name: torch.randn(p.shape, generator=rng, dtype=p.dtype) for name, p in start.items()}
        difference = (loss_at(1e-7, direction) - loss_at(-1e-7, direction)) / 2e-7
        gaps.append(
            abs(float(sum((grads[n] * direction[n]).sum() for n in grads)) - difference) / float(size)
        )
    return max(gaps)


@pytest.mark.parametrize("cls", LEARNED, ids=lambda cls: cls.__name__)
def test_outer_gradients_match_finite_differences(cls: type[Algorithm]) -> None:
    algorithm = moved(on_images(cls), 0.05)
    parameters = dict(algorithm.named_parameters())
    learned = {name: p for name, p in parameters.items() if name.startswith(LEARNED[cls])}
    assert mismatch(algorithm, learned) < 1e-5
    assert mismatch(algorithm, parameters) < 1e-5


@pytest.mark.parametrize("cls", LEARNED, ids=lambda cls: cls.__name__)
def test_the_first_order_approximation_fails_that_check(cls: type[Algorithm]) -> None:
    algorithm = moved(on_images(cls, order=1), 0.05)
    assert mismatch(algorithm, dict(algorithm.named_parameters())) > 1e-3


# ---------------------------------------------------------------- dials


@pytest.mark.parametrize(
    "check",
    [
        it_draws_no_random_numbers_and_keeps_nothing_between_tasks,
        loop_equals_vmap,
        a_compiled_gradient_is_that_of_the_loop,
    ],
)
def test_mt_net_keeps_what_its_drawn_masks_could_break(check: Check) -> None:
    source = InMemory("regression")
    spec = source.spec("train")
    torch.manual_seed(0)
    model = built(MLP, spec.input_spec, hidden=[])
    assert run(check, Trial(built(TNet, model, spec, masks=True, inner_lr=0.01), source))


def test_rates_start_alike_or_uniformly_in_a_range() -> None:
    alike, drawn = (
        torch.cat([rates.detach().flatten() for rates in on_images(MetaSGD, inner_lr=inner_lr).rates])
        for inner_lr in (0.25, [0.005, 0.1])
    )
    assert alike.unique().tolist() == [0.25]
    assert 0.005 <= drawn.min() < 0.01
    assert 0.095 < drawn.max() <= 0.1


def test_only_what_adapts_has_rates_and_matrices() -> None:
    assert [tuple(r.shape) for r in on_images(MetaSGD, adapts="head").rates] == [(3, 4), (3,)]
    assert [len(ms) for ms in on_images(MetaCurvature, adapts=["model.convs", "head"]).matrices] == [
        *[3] * 4,
        2,
        1,
    ]


@pytest.mark.parametrize("cls", LEARNED, ids=lambda cls: cls.__name__)
def test_what_is_learned_of_the_step_has_an_outer_rate_of_its_own_and_no_weight_decay(
    cls: type[Algorithm],
) -> None:
    lr = f"{LEARNED[cls]}_lr"
    common, own = (grouped(on_images(cls, **{lr: value}))[1] for value in (None, 0.05))
    assert common.keys() == {"params", "weight_decay"}
    assert (own["lr"], own["weight_decay"]) == (0.05, 0.0)
    assert len(own["params"]) == len(list(getattr(on_images(cls), LEARNED[cls]).parameters()))


def test_a_convolution_in_groups_has_no_matrix() -> None:
    model = built(Conv4, IMAGE, channels=4)
    model.convs[1] = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False)
    assert [names[0] for names in built(TNet, model, image_spec()).layers] == [
        "model.convs.0.weight",
        "model.convs.2.weight",
        "model.convs.3.weight",
        "head.weight",
    ]


@pytest.mark.parametrize("inner_lr", [[], [0.1], [0.1, 0.005], [0.0, 0.1], -0.1, [0.1, 0.2, 0.3]], ids=str)
def test_initial_rates_that_are_no_range_are_refused(inner_lr: Any) -> None:
    with pytest.raises(ValueError, match=r"algo.inner_lr=.* give a number above 0 .* or \[low, high\]"):
        on_images(MetaSGD, inner_lr=inner_lr)


@pytest.mark.parametrize(
    "word",
    [
        *(f"algo={name} algo.{LEARNED[cls]}_lr=0" for name, cls in zip(
            ("meta_sgd", "meta_curvature", "t_net"), LEARNED, strict=True
        )),
        *(f"algo={name} algo.inner_lr=0" for name in ("meta_sgd", "meta_curvature", "t_net")),
        *(f"algo={name} algo.adaptation_steps=-1" for name in ("meta_sgd", "meta_curvature", "t_net")),
        *(f"algo={name} algo.order=3" for name in ("meta_sgd", "meta_curvature", "t_net")),
        "algo=meta_sgd algo.inner_lr=[0.1,-0.1]",
        "algo=t_net algo.masks=2",
    ],
)  # fmt: skip
def test_a_dial_out_of_range_is_refused_by_its_name(word: str) -> None:
    algo, dial = word.split()
    with pytest.raises(ConfigError, match=dial.partition("=")[0].replace(".", r"\.")):
        compose([algo, dial])


@pytest.mark.parametrize("cls", LEARNED, ids=lambda cls: cls.__name__)
def test_patterns_that_match_nothing_are_refused(cls: type[Algorithm]) -> None:
    with pytest.raises(ValueError, match=r"algo.adapts=heads: heads matches no parameter; did you mean head"):
        on_images(cls, adapts="heads")
