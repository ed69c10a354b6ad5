"""MAML++ against an independent loop in plain PyTorch, against MAML where it is one, and its weights by
hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metalearn.algorithms.maml import MAML
from metalearn.algorithms.maml_pp import MAMLpp, loss_weights
from metalearn.config.compose import compose
from metalearn.core import Algorithm, Task, blank_query
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.errors import ConfigError
from metalearn.models.conv4 import Conv4
from metalearn.testing.algorithms import traced_compiler
from metalearn.testing.trial import Trial
from tests import plugins
from tests.reference.tasks import IMAGE, image_spec, image_tasks
from tests.reference.test_gradients import gradients, mismatch, perturbed
from tests.shipped import built

STEPS, ANNEALED = 3, 10


def made(cls: type[Algorithm] = MAMLpp, *, norm_statistics: str = "transductive", **dials: Any) -> Any:
    torch.manual_seed(0)
    model = built(Conv4, IMAGE, channels=4, norm_statistics=norm_statistics)
    ours = {"multi_step_loss_steps": ANNEALED} if cls is MAMLpp else {}
    common = {"inner_lr": 0.2, "adaptation_steps": STEPS, "eval_adaptation_steps": STEPS, **ours}
    algorithm = built(cls, model, image_spec(), **{**common, **dials}).double()
    if cls is MAMLpp:
        algorithm.rates.data.fill_(algorithm.inner_lr)  # to the last digit
    return algorithm


def only(tasks: Task) -> Task:
    return Task(*tree_map(lambda leaf: leaf[0], tuple(tasks)))


def authors_weights(epoch: int, num_steps: int, num_epochs: int) -> list[float]:
    """As in the authors' code, one after the other; after the epochs of the annealing the last loss counts
    alone.
    """
    if epoch >= num_epochs:
        return [0.0] * (num_steps - 1) + [1.0]
    decay, least = 1 / num_steps / num_epochs, 0.03 / num_steps
    earlier = max(1 / num_steps - epoch * decay, least)
    last = min(1 / num_steps + epoch * (num_steps - 1) * decay, 1 - (num_steps - 1) * least)
    return [earlier] * (num_steps - 1) + [last]


@pytest.mark.parametrize(
    ("outer_step", "expected"),
    [
        (0, [0.2, 0.2, 0.2, 0.2, 0.2]),
        (50, [0.1, 0.1, 0.1, 0.1, 0.6]),
        (90, [0.02, 0.02, 0.02, 0.02, 0.92]),
        (99, [0.006, 0.006, 0.006, 0.006, 0.976]),
        (100, [0.0, 0.0, 0.0, 0.0, 1.0]),
        (10**6, [0.0, 0.0, 0.0, 0.0, 1.0]),
    ],
)
def test_the_losses_weigh_what_was_computed_by_hand(outer_step: int, expected: list[float]) -> None:
    found = loss_weights(torch.tensor(float(outer_step)), 5, 100)
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(found, torch.tensor(authors_weights(outer_step, 5, 100)))


@pytest.mark.parametrize(("num_steps", "annealed_over"), [(1, 10), (5, 0)])
def test_the_last_loss_counts_alone_where_there_is_no_other_or_no_annealing(
    num_steps: int, annealed_over: int
) -> None:
    assert loss_weights(torch.tensor(0.0), num_steps, annealed_over).tolist() == [0.0] * (num_steps - 1) + [
        1.0
    ]


@pytest.mark.parametrize("order", [1, 2])
def test_with_one_step_it_is_maml_that_leaves_the_norms_alone(order: int) -> None:
    tasks, plan = image_tasks(2), TaskPlan("vmap")
    one = {"adaptation_steps": 1, "order": order}
    ours, plain = made(**one), made(MAML, adapts=["model.convs", "head"], **one)
    torch.testing.assert_close(
        Executor(ours, plan).sums(tasks).losses, Executor(plain, plan).sums(tasks).losses, rtol=1e-12, atol=0
    )
    found, expected = gradients(ours, tasks, plan), gradients(plain, tasks, plan)
    assert found.keys() - expected.keys() == {"rates"}
    for name, grad in expected.items():
        torch.testing.assert_close(found[name].reshape(grad.shape), grad, rtol=1e-9, atol=1e-12)


def test_with_equal_rates_and_norms_and_the_last_loss_alone_it_is_maml_of_several_steps() -> None:
    """What MAML's affine has for a gradient is shared out among the steps, and that of its rate too."""
    tasks, plan = image_tasks(2), TaskPlan("vmap")
    ours, plain = made(multi_step_loss_steps=0), made(MAML, adapts=["model.convs", "head"])
    found, expected = gradients(ours, tasks, plan), gradients(plain, tasks, plan)
    for name, grad in expected.items():
        shared = found[name].sum(0) if "bns" in name else found[name]
        torch.testing.assert_close(shared, grad, rtol=1e-9, atol=1e-12)
    assert all(row.norm() > 1e-6 for row in found["model.bns.0.weight"])
    ends = []
    for rate in (0.2 + 1e-6, 0.2 - 1e-6):
        plain.inner_lr = rate
        ends.append(Executor(plain, plan).sums(tasks).losses.mean())
    torch.testing.assert_close(found["rates"].sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=0)


def plain_network(weights: dict[str, Tensor], affines: dict[str, Tensor], row: int, x: Tensor) -> Tensor:
    for i in range(4):
        x = F.conv2d(x, weights[f"model.convs.{i}.weight"], stride=2, padding=1)
        weight, bias = (affines[f"model.bns.{i}.{name}"][row] for name in ("weight", "bias"))
        x = F.relu(F.batch_norm(x, None, None, weight, bias, training=True))
    return F.linear(x.mean((-2, -1)), weights["head.weight"], weights["head.bias"])


@pytest.mark.parametrize("outer_step", [0, 4, 12])
@pytest.mark.parametrize("plan", [TaskPlan("loop"), TaskPlan("vmap")], ids=str)
def test_loss_and_gradient_are_those_of_a_plain_loop(outer_step: int, plan: TaskPlan) -> None:
    """Every parameter at a value of its own, so that no rate and no affine can stand for another."""
    algorithm, tasks = perturbed(made()), image_tasks(1)
    algorithm.outer_step.fill_(outer_step)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in algorithm.named_parameters()}
    affines = {name: p for name, p in leaves.items() if "bns" in name}
    weights = {name: p for name, p in leaves.items() if name not in affines and name != "rates"}
    names, task, losses = list(weights), only(tasks), []
    for step in range(STEPS):
        support_loss = F.cross_entropy(plain_network(weights, affines, step, task.support.x), task.support.y)
        grads = torch.autograd.grad(support_loss, list(weights.values()), create_graph=True)
        weights = {name: weights[name] - leaves["rates"][i, step] * grads[i] for i, name in enumerate(names)}
        query = plain_network(weights, affines, step, task.query.x)
        losses.append(F.cross_entropy(query, task.query.y))
    shares = authors_weights(outer_step, STEPS, ANNEALED)
    total = sum(share * loss for share, loss in zip(shares, losses, strict=True))
    total.backward()
    sums = Executor(algorithm, plan).sums(tasks)
    torch.testing.assert_close(sums.losses[0], total.detach(), rtol=1e-9, atol=0)
    for name, leaf in leaves.items():
        torch.testing.assert_close(sums.grads[name], leaf.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("norm_statistics", ["transductive", "support", "support_and_one"])
def test_the_gradient_matches_finite_differences_in_every_parameter(norm_statistics: str) -> None:
    algorithm = perturbed(made(norm_statistics=norm_statistics, adaptation_steps=2))
    assert mismatch(algorithm, image_tasks(2)) < 1e-5


def test_the_first_order_gradient_fails_the_finite_difference_check() -> None:
    assert mismatch(perturbed(made(order=1)), image_tasks(2)) > 1e-2


def test_a_compiled_gradient_follows_the_outer_step() -> None:
    """One graph for all outer steps: what anneals is a tensor in it."""
    algorithm, source = copy.deepcopy(plugins.in_memory("maml_pp", "regression"))
    tasks, plain = Trial(algorithm, source).batch(), Executor(algorithm, TaskPlan("vmap"))
    found = []
    with traced_compiler():
        compiled = Executor(algorithm, TaskPlan("vmap", compile=True))
        for outer_step in (0, algorithm.multi_step_loss_steps // 2, 2 * algorithm.multi_step_loss_steps):
            algorithm.outer_step.fill_(outer_step)
            sums, expected = compiled.sums(tasks), plain.sums(tasks)
            torch.testing.assert_close(sums.losses, expected.losses)
            torch.testing.assert_close(sums.grads["rates"], expected.grads["rates"])
            found.append(float(sums.losses.sum()))
    assert len(set(found)) == 3


def test_norms_are_no_part_of_what_is_adapted() -> None:
    algorithm = made()
    adapted = algorithm.adapt(blank_query(only(image_tasks(1))), steps=2)
    assert adapted["weights"].keys() == {
        *(f"model.convs.{i}.weight" for i in range(4)),
        "head.weight",
        "head.bias",
    }
    assert algorithm.rates.shape == (6, STEPS)
    assert algorithm.model.bns[0].weight.shape == (STEPS, 4)


@pytest.mark.parametrize("norm_statistics", ["transductive", "support"])
def test_steps_beyond_those_of_training_share_the_last_ones_rates_and_norms(norm_statistics: str) -> None:
    task = only(image_tasks(1))
    algorithm = perturbed(made(norm_statistics=norm_statistics))
    longer = perturbed(made(norm_statistics=norm_statistics, adaptation_steps=STEPS + 2))
    state = algorithm.state_dict()
    for name, value in longer.state_dict().items():
        if value.shape != state[name].shape:
            dim = 1 if name == "rates" else 0
            last = state[name].narrow(dim, STEPS - 1, 1)
            state[name] = torch.cat([state[name], last, last], dim)
    longer.load_state_dict(state)

    def predictions(one: Algorithm) -> Tensor:
        adapted = one.adapt(blank_query(task), steps=STEPS + 2)
        return one.predict(one.inductive(adapted, task), task.query.x, task.query.mask)

    torch.testing.assert_close(predictions(algorithm), predictions(longer), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: made(adapts=["model.bns"]),
            "algo.adapts=.'model.bns'. names norms alone, which MAML.. changes",
        ),
        (lambda: made(adapts=["bodies"]), "algo.adapts=.'bodies'.: bodies matches no parameter"),
        (
            lambda: made(adaptation_steps=0),
            "algo.adaptation_steps=0, but MAML.. has a loss after every inner",
        ),
        (lambda: made(order=3), "algo.order=3 is none of 1, 2"),
    ],
)
def test_what_it_cannot_do_is_refused_by_its_constructor(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    "word",
    [
        *("algo.inner_lr=0", "algo.adaptation_steps=0", "algo.eval_adaptation_steps=-1"),
        *("algo.multi_step_loss_steps=-1", "algo.order=0", "algo.inner_optimizer=adam"),
    ],
)
def test_a_wrong_value_is_refused_before_torch_is_imported(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        compose(["algo=maml_pp", word])
