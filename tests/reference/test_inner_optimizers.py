"""Inner optimizers against `torch.optim`, and the outer gradient through them against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.algorithms.maml import MAML
from metalearn.algorithms.protomaml import ProtoMAML
from metalearn.core import Algorithm, InputSpec, Task, TaskSpec, map_leaves
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.functional import RULES, Adam, Update, descend, optimizer
from metalearn.models.mlp import MLP
from metalearn.objectives import Regression
from tests.reference.tasks import IMAGE, image_spec, image_tasks
from tests.reference.test_functional import START, bowl, end
from tests.reference.test_gradients import gradients, maml, mismatch, perturbed
from tests.shipped import arguments, built

STEPS, LR = 12, 0.03
DIALS = arguments(MAML)["inner_optimizer"]
TINY = 1e-30  # eps that no root notices, so that it is of no matter on which side of it it stands
Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
IN_TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda p, **rest: torch.optim.SGD(p, momentum=0.8, **rest),
    "adam": lambda p, **rest: torch.optim.Adam(p, betas=(0.7, 0.95), eps=0.0, **rest),
    "rmsprop": lambda p, **rest: torch.optim.RMSprop(p, alpha=0.95, eps=0.0, **rest),
}
# A rate for each, at which it moves far in a few steps.
RATES = {"sgd": 0.3, "momentum": 0.2, "adam": 0.02, "rmsprop": 0.02}


def ours(name: str, **dials: Any) -> Update:
    given = {"lr": LR, "steps": STEPS, "momentum": 0.8, "beta1": 0.7, "beta2": 0.95, "eps": TINY}
    return optimizer(**{**DIALS, **given, "name": name, **dials})


def theirs(
    name: str, *, factor: Callable[[int], float] = lambda step: 1.0, clip: float | None = None, **dials: Any
) -> Tensor:
    w = START.clone().requires_grad_()
    found = IN_TORCH[name]([w], lr=LR, **dials)
    for step in range(STEPS):
        found.zero_grad()
        bowl({"w": w}, step).backward()
        assert w.grad is not None
        if clip is not None:
            w.grad *= min(1.0, clip / float(w.grad.norm()))
        for group in found.param_groups:
            group["lr"] = LR * factor(step)
        found.step()
    return w.detach()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", RULES)
def test_it_is_that_of_pytorch(name: str, weight_decay: float) -> None:
    found = end(ours(name, weight_decay=weight_decay), {"w": START}, STEPS)["w"]
    torch.testing.assert_close(found, theirs(name, weight_decay=weight_decay), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("anneal", "scheduler"),
    [
        ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 1e-300, STEPS)),
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS)),
    ],
)
@pytest.mark.parametrize("name", RULES)
def test_its_rate_falls_like_that_of_pytorch(name: str, anneal: str, scheduler: Any) -> None:
    w = torch.nn.Parameter(START.clone())
    schedule = scheduler(torch.optim.SGD([w], lr=1.0))
    factors = []
    for _ in range(STEPS):
        factors.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    found = end(ours(name, anneal=anneal), {"w": START}, STEPS)["w"]
    torch.testing.assert_close(found, theirs(name, factor=factors.__getitem__), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_a_gradient_is_clipped_to_its_norm_before_decay(name: str) -> None:
    found = end(ours(name, clip=0.5, weight_decay=0.1), {"w": START}, STEPS)["w"]
    torch.testing.assert_close(found, theirs(name, clip=0.5, weight_decay=0.1), rtol=1e-12, atol=1e-13)
    unlimited = end(ours(name), {"w": START}, STEPS)["w"]
    assert torch.equal(end(ours(name, clip=1e6), {"w": START}, STEPS)["w"], unlimited)
    assert not torch.allclose(found, unlimited)


def test_the_norm_is_that_of_all_weights_together() -> None:
    weights = {"a": torch.zeros(1), "b": torch.zeros(2)}
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([0.0, 4.0])}
    found = ours("sgd", clip=1.0, lr=1.0)(weights, grads, 0)
    torch.testing.assert_close(found, {"a": torch.tensor([-0.6]), "b": torch.tensor([0.0, -0.8])})


EXTRAS = [
    {"name": "sgd", "weight_decay": 0.1, "clip": 0.3, "anneal": "cosine"},
    {"name": "momentum", "weight_decay": 0.1, "anneal": "linear"},
    {"name": "adam", "eps": 1e-4, "weight_decay": 0.1, "clip": 0.3},
    {"name": "rmsprop", "eps": 1e-4, "anneal": "cosine"},
]


def with_optimizer(dials: dict[str, Any], **rest: Any) -> MAML:
    torch.manual_seed(0)
    rate = RATES[dials["name"]]
    steps = {"adaptation_steps": 3, "eval_adaptation_steps": 4}
    model = built(MLP, IMAGE, hidden=[6, 5], init="default", head_init="default")
    algorithm = built(
        MAML, model, image_spec(), inner_lr=rate, inner_optimizer={**DIALS, **dials}, **{**steps, **rest}
    )
    assert isinstance(perturbed(algorithm), MAML)
    return algorithm


@pytest.mark.parametrize("dials", EXTRAS, ids=lambda dials: dials["name"])
def test_the_outer_gradient_matches_finite_differences(dials: dict[str, Any]) -> None:
    tasks = image_tasks(2)
    assert mismatch(with_optimizer(dials), tasks) < 1e-5
    assert mismatch(with_optimizer(dials, order=1), tasks) > 1e-2


@pytest.mark.parametrize("dials", EXTRAS, ids=lambda dials: dials["name"])
@pytest.mark.parametrize("order", [1, 2])
def test_plans_agree(dials: dict[str, Any], order: int) -> None:
    algorithm, tasks = with_optimizer(dials, order=order), image_tasks(3)
    expected = gradients(algorithm, tasks, TaskPlan("loop"))
    found = gradients(algorithm, tasks, TaskPlan("vmap"))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dials", EXTRAS, ids=lambda dials: dials["name"])
def test_a_path_is_what_its_counts_are_one_by_one(dials: dict[str, Any]) -> None:
    """What one descent remembers stays in it, and the rate of a step does not depend on how many follow."""
    algorithm = with_optimizer(dials)
    task = one(image_tasks(1))
    path = list(algorithm.adapt_path(task, counts=[0, 1, 3]))
    for count, adapted in zip([0, 1, 3], path, strict=True):
        alone = algorithm.adapt(task, steps=count)["weights"]
        assert all(torch.equal(alone[name], w) for name, w in adapted["weights"].items())


def one(tasks: Any) -> Task:
    return Task(*map_leaves(lambda leaf: leaf[0], tasks))


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_dead_units_give_finite_second_derivatives(name: str) -> None:
    algorithm, tasks = with_optimizer({"name": name}), image_tasks(2)
    with torch.no_grad():
        algorithm.model.layers[0].bias[:3] = -1e3  # three of six units that no input wakes
    for p in gradients(algorithm, tasks, TaskPlan("vmap")).values():
        assert p.isfinite().all()
    for p in gradients(algorithm, tasks, TaskPlan("loop")).values():
        assert p.isfinite().all()


def test_an_eps_outside_of_the_root_does_not() -> None:
    start = {"w": torch.tensor([1.0, 0.0], requires_grad=True)}
    for dials, finite in (({"eps": 1e-8}, False), ({"eps_root": 1e-8}, True)):
        adam = Adam(lr=0.1, **dials)
        path = descend(lambda w, step: (w["w"] ** 3).sum(), start, adam, counts=[1], first_order=False)
        (grad,) = torch.autograd.grad(next(path)["w"].sum(), start["w"])
        assert bool(grad.isfinite().all()) == finite


def test_a_gradient_of_zero_is_clipped_to_itself_and_can_be_differentiated() -> None:
    start = {"w": torch.zeros(3, requires_grad=True)}
    update = ours("sgd", clip=0.1, lr=0.5)
    path = descend(lambda w, step: w["w"].square().sum() / 2, start, update, counts=[1], first_order=False)
    (grad,) = torch.autograd.grad(next(path)["w"].sum(), start["w"])
    torch.testing.assert_close(grad, torch.full((3,), 0.5))


def test_plain_gradient_descent_is_the_update_that_relatives_override() -> None:
    algorithm = with_optimizer({"name": "sgd", "momentum": 0.5, "eps": 1.0})  # dials of other rules
    assert algorithm.updates() == algorithm.update
    assert "inner_optimizer" not in algorithm.protocol()
    assert with_optimizer({"name": "sgd", "clip": 1.0}).protocol()["inner_optimizer"]["clip"] == 1.0


class Halving(MAML):
    """A relative with a step of its own."""

    def update(self, weights, grads, step):
        return {name: w / 2 for name, w in weights.items()}


def relative(**dials: Any) -> Algorithm:
    keys = {key: value for key, value in arguments(MAML).items() if key != "inner_optimizer"}
    model = built(MLP, IMAGE, hidden=[4])
    return Halving(model, image_spec(), **{**keys, **dials})


def test_a_relative_with_a_step_of_its_own_needs_no_inner_optimizer_and_takes_none() -> None:
    for dials in ({}, {"inner_optimizer": DIALS}):
        algorithm = relative(adaptation_steps=1, **dials).double()
        adapted = algorithm.adapt(one(image_tasks(1)), steps=1)["weights"]
        torch.testing.assert_close(adapted["head.weight"], algorithm.head.weight / 2)
    with pytest.raises(
        ValueError, match=r"algo.inner_optimizer=.*'adam'.*Halving has an inner step of its own"
    ):
        relative(inner_optimizer={**DIALS, "name": "adam"})


@pytest.mark.parametrize(
    ("dials", "sentence"),
    [
        ({"name": "adm"}, "algo.inner_optimizer.name=adm is none of sgd, momentum, adam, rmsprop"),
        ({"anneal": "step"}, "algo.inner_optimizer.anneal=step is none of constant, linear, cosine"),
    ],
)
def test_words_that_are_none_are_refused(dials: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        built(MAML, built(MLP, IMAGE), image_spec(), inner_optimizer={**DIALS, **dials})


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_proto_maml_takes_it_too(name: str) -> None:
    torch.manual_seed(0)
    model = built(MLP, IMAGE, hidden=[6, 5], init="default")
    dials = {"inner_lr": 0.01, "adaptation_steps": 2, "inner_optimizer": {**DIALS, "name": name, "eps": 1e-4}}
    algorithm = built(ProtoMAML, model, image_spec(), **dials).double()
    tasks = image_tasks(2)
    expected = Executor(algorithm, TaskPlan("loop")).sums(tasks).grads
    torch.testing.assert_close(
        Executor(algorithm, TaskPlan("vmap")).sums(tasks).grads, expected, rtol=1e-9, atol=1e-12
    )
    assert expected["model.layers.0.weight"].norm() > 0


class TestWarmUp:
    """First order for so many updates of the outer loop, then second, as the first-order and the second-order
    method have it.
    """

    @pytest.mark.parametrize("plan", [TaskPlan("loop"), TaskPlan("vmap")], ids=str)
    @pytest.mark.parametrize(("taken", "order"), [(0, 1), (4, 1), (5, 2), (9, 2)])
    def test_its_gradient_is_that_of_the_order(self, taken: int, order: int, plan: TaskPlan) -> None:
        tasks, expected = image_tasks(3), maml(order=order)
        algorithm = maml()
        algorithm.warmup_steps = 5
        algorithm.outer_step.fill_(taken)
        for name, grad in gradients(algorithm, tasks, plan).items():
            reference = gradients(expected, tasks, plan)[name]
            torch.testing.assert_close(grad, reference, rtol=1e-12, atol=1e-14)

    def test_one_graph_has_both(self) -> None:
        """What is compiled is not compiled again when the order changes."""
        torch.compiler.reset()
        built_graphs = []

        def backend(graph: Any, inputs: Any) -> Any:
            built_graphs.append(graph)
            return graph.forward

        algorithm, tasks = with_optimizer({"name": "sgd"}, warmup_steps=1), image_tasks(2)
        plan = TaskPlan("vmap")

        def gradient(params: Any, chunk: Any) -> Any:
            return algorithm.gradient(params, chunk, plan)

        compiled = torch.compile(gradient, backend=backend, fullgraph=True, dynamic=False)
        params = {name: p.detach() for name, p in algorithm.named_parameters()}
        for taken in (0, 1, 2):
            algorithm.outer_step.fill_(taken)
            found, _, _ = compiled(params, tasks)
            expected = gradients(with_optimizer({"name": "sgd"}, order=2 if taken else 1), tasks, plan)
            for name, grad in expected.items():
                torch.testing.assert_close(found[name] / 2, grad, rtol=1e-9, atol=1e-12)
        assert len(built_graphs) == 1

    def test_it_needs_a_second_order_to_go_to(self) -> None:
        with pytest.raises(
            ValueError, match="algo.warmup_steps=3 are of first order before second, but algo.ord"
        ):
            maml_of(order=1, warmup_steps=3)


def maml_of(**dials: Any) -> MAML:
    algorithm: MAML = built(MAML, built(MLP, IMAGE, hidden=[4]), image_spec(), **dials)
    return algorithm


class TestInnerLoss:
    def test_the_sum_over_classes_is_a_rate_times_as_large_as_there_are_classes(self) -> None:
        tasks = image_tasks(2, way=3)
        summed, mean = maml(), maml()
        summed.inner_loss, mean.inner_lr = "sum_over_classes", 3 * mean.inner_lr
        torch.testing.assert_close(
            gradients(summed, tasks, TaskPlan("vmap")),
            gradients(mean, tasks, TaskPlan("vmap")),
            rtol=1e-10,
            atol=1e-13,
        )

    def test_it_is_the_cross_entropy_of_the_authors_code(self) -> None:
        """Summed over N·K rows and divided by K."""
        algorithm, task = maml_of(inner_loss="sum_over_classes"), one(image_tasks(1, way=3, shot=2))
        algorithm.double()
        weights = dict(algorithm.named_parameters())
        prediction, _ = algorithm.network(task.support.x)
        expected = torch.nn.functional.cross_entropy(prediction, task.support.y, reduction="sum") / 2
        torch.testing.assert_close(algorithm.task_inner_loss(weights, weights, task, 0), expected)

    def test_other_tasks_than_classification_have_no_classes(self) -> None:
        spec = TaskSpec("regression", Regression(), 1, InputSpec((1,)), 5, 5, 1)
        with pytest.raises(
            ValueError, match="algo.inner_loss=sum_over_classes needs classes, but .* regression"
        ):
            built(MAML, built(MLP, InputSpec((1,))), spec, inner_loss="sum_over_classes")
