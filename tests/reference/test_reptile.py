"""Reptile and FOML against plain loops over tasks with PyTorch's own optimizers, as their authors' code has
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms.foml import FOML
from metalearn.algorithms.reptile import Reptile
from metalearn.build.checks import Prebuilt, check_machine
from metalearn.build.instantiate import construct
from metalearn.config.compose import compose
from metalearn.core import Algorithm, Task, TaskBatch, map_leaves
from metalearn.engine.executor import TaskPlan, execute
from metalearn.engine.memory import peak_bytes
from metalearn.errors import ConfigError
from metalearn.models.conv4 import Conv4
from metalearn.testing.algorithms import check_algorithm
from tests import plugins
from tests.in_memory import InMemory
from tests.reference.tasks import IMAGE, image_spec, image_tasks, with_draws
from tests.reference.test_gradients import perturbed
from tests.shipped import built

LOOP = TaskPlan("loop")
STEPS, SIZE, RATE = 3, 4, 0.01
Tasks = list[Task]


def made(cls: type[Algorithm], *, shot: int = 2, **dials: Any) -> Any:
    torch.manual_seed(0)
    steps = {"inner_lr": RATE, "adaptation_steps": STEPS, "eval_adaptation_steps": 4}
    sizes = {"inner_batch_size": SIZE, "eval_inner_batch_size": 6}
    model = built(Conv4, IMAGE, channels=4)
    return perturbed(built(cls, model, image_spec(shot=shot), **{**steps, **sizes, **dials}))


def batches(algorithm: Algorithm, outer_steps: int, count: int = 3, shot: int = 2) -> list[TaskBatch]:
    return [
        with_draws(
            algorithm, image_tasks(count, shot=shot, seed=seed)._replace(key=torch.arange(count) + 9 * seed)
        )
        for seed in range(outer_steps)
    ]


def singles(batch: TaskBatch) -> Tasks:
    return [Task(*map_leaves(lambda leaf, n=n: leaf[n], batch)) for n in range(batch.count)]


def shuffled(task: Task, step: int) -> Tensor:
    return task.draws["order"].flatten()[step * SIZE : (step + 1) * SIZE]


def plain_step(
    algorithm: Any,
    tasks: Tasks,
    inner: torch.optim.Optimizer,
    rows: Callable[[Task, int], Tensor] = shuffled,
    *,
    last_alone: bool = False,
) -> tuple[dict[str, Tensor], list[float]]:
    """One outer step as the original takes it, task after task with one optimizer: the mean displacement and
    the mean loss of each task. The weights are as before.
    """
    start = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
    moved = {name: torch.zeros_like(p) for name, p in start.items()}
    losses = []
    for task in tasks:
        of_steps = []
        for step in range(STEPS):
            backup = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
            chosen = rows(task, step)
            prediction, _ = algorithm.network(task.support.x[chosen])
            loss = F.cross_entropy(prediction, task.support.y[chosen])
            inner.zero_grad()
            loss.backward()
            inner.step()
            of_steps.append(loss.item())
        for name, p in algorithm.named_parameters():
            moved[name] += ((backup if last_alone else start)[name] - p.detach()) / len(tasks)
        put_back(algorithm, start)
        losses.append(sum(of_steps) / STEPS)
    return moved, losses


def put_back(algorithm: nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, p in algorithm.named_parameters():
            p.copy_(weights[name])


def assert_equal_training(
    algorithm: Any,
    training: list[TaskBatch],
    inner: Callable[[nn.Module], torch.optim.Optimizer],
    **plain: Any,
) -> None:
    """Outer steps at a rate of 1/2, with the weights and all that the inner optimizer remembers."""
    optimizer = inner(algorithm)
    for batch in training:
        expected, of_tasks = plain_step(algorithm, singles(batch), optimizer, **plain)
        losses, metrics = execute(algorithm, batch, LOOP)
        torch.testing.assert_close(
            losses, torch.tensor(of_tasks, dtype=torch.float64), rtol=1e-10, atol=1e-10
        )
        for name, p in algorithm.named_parameters():
            torch.testing.assert_close(
                p.grad, expected[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )
        with torch.no_grad():
            for p in algorithm.parameters():
                p.sub_(p.grad, alpha=0.5)
        if "statistics" in metrics:
            algorithm.update_running(metrics["statistics"])


def adam(algorithm: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(algorithm.parameters(), lr=RATE, betas=(0.0, 0.999))


def sgd(algorithm: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(algorithm.parameters(), lr=RATE)


def test_sequential_reptile_is_the_original_task_after_task() -> None:
    algorithm = made(Reptile, task_order="sequential")
    assert_equal_training(algorithm, batches(algorithm, 3), adam)
    assert algorithm.inner_steps == 3 * 3 * STEPS


def test_the_order_of_tasks_matters_only_from_the_second_task_on() -> None:
    """And only through what is carried: a task's own gradient is that of the other order."""

    def gradient(task_order: str, batch: TaskBatch) -> Tensor:
        algorithm = made(Reptile, task_order=task_order)
        execute(algorithm, batch, LOOP)
        return torch.cat([p.grad.flatten() for p in algorithm.parameters()])

    algorithm = made(Reptile)
    one, three = (batches(algorithm, 1, count)[0] for count in (1, 3))
    assert torch.equal(gradient("sequential", one), gradient("together", one))
    together, sequential = gradient("together", three), gradient("sequential", three)
    # Together all first steps are the sign of a gradient: the second moment is zero.
    assert (together - sequential).norm() > 0.05 * together.norm()


def test_a_sequential_step_is_one_piece_of_work_whose_memory_does_not_grow() -> None:
    algorithm = made(Reptile, task_order="sequential")

    def peak(count: int) -> int:
        (batch,) = batches(algorithm, 1, count)
        return peak_bytes(lambda: execute(algorithm, batch, LOOP), torch.device("cpu"))

    assert peak(12) < 1.1 * peak(3)


def test_a_sequential_method_keeps_the_contract_compiled_too() -> None:
    cfg, source = plugins.configuration("reptile", "classification"), InMemory("classification")
    cfg = {**cfg, "algo": {**cfg["algo"], "task_order": "sequential"}}
    torch.manual_seed(0)
    model = plugins.TwoLayers(source.spec("train").input_spec, cfg["model"]["norm_statistics"])
    algorithm: Algorithm = construct(cfg, "algo", model=model, spec=source.spec("train"))
    check_algorithm(algorithm, source)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            [],
            "device.plan=vmap, but algo=reptile with these dials maps its tasks by loop only",
        ),
        (
            ["device.plan=loop", "device.ranks=2"],
            "device.ranks=2, but algo=reptile with these dials takes the",
        ),
    ],
)
def test_other_plans_of_a_sequential_method_are_refused(
    words: list[str], problem: str, tmp_path: Any
) -> None:
    glyphs = ["data=glyphs", "data.num_classes=60", f"data.cache_dir={tmp_path}", "device=cpu"]
    cfg = compose(["algo=reptile", "algo.task_order=sequential", *glyphs, *words])
    with pytest.raises(ConfigError, match=problem):
        check_machine(cfg, tmp_path / "run", Prebuilt())


@pytest.mark.parametrize(("name", "inner"), [("adam", adam), ("sgd", sgd)])
def test_foml_is_the_original_whose_last_step_alone_counts(name: str, inner: Any) -> None:
    algorithm = made(FOML, task_order="sequential", inner_optimizer={"name": name})
    assert_equal_training(algorithm, batches(algorithm, 3), inner, last_alone=True)


def test_with_plain_descent_it_is_the_gradient_of_the_last_minibatch() -> None:
    algorithm = made(FOML, inner_optimizer={"name": "sgd"})
    (batch,) = batches(algorithm, 1, count=1)
    execute(algorithm, batch, LOOP)
    found = {name: p.grad.clone() for name, p in algorithm.named_parameters()}
    (task,) = singles(batch)
    path = algorithm.descent(task, [STEPS - 1], lambda step: shuffled(task, step), algorithm.descend, [])
    weights = {name: w.detach().requires_grad_() for name, w in next(path).items()}
    last = map_leaves(lambda leaf: leaf[shuffled(task, STEPS - 1)], task.support)
    grads = torch.autograd.grad(algorithm.support_loss(weights, last, STEPS - 1), list(weights.values()))
    for name, grad in zip(weights, grads, strict=True):
        torch.testing.assert_close(found[name], RATE * grad, rtol=1e-9, atol=1e-14)


def held_out(task: Task, step: int, *, shot: int, tail_shots: int) -> Tensor:
    """In lists: the tail is of each class the rows that a shuffling has first, the others are taken as
    shuffled, epoch after epoch.
    """
    rank, labels = task.draws["tail"].tolist(), task.support.y.tolist()
    tail = [
        row
        for label in range(3)
        for row in sorted((r for r in range(3 * shot) if labels[r] == label), key=rank.__getitem__)[
            :tail_shots
        ]
    ]
    if step == STEPS - 1:
        return torch.tensor(tail)
    others = [row for epoch in task.draws["order"].tolist() for row in epoch if row not in tail]
    size = min(SIZE, 3 * (shot - tail_shots))
    return torch.tensor(others[step * size : (step + 1) * size])


@pytest.mark.parametrize(("shot", "tail_shots"), [(2, 1), (5, 1), (5, 3)])
def test_the_tail_is_held_out_from_every_class(shot: int, tail_shots: int) -> None:
    algorithm = made(FOML, shot=shot, tail_shots=tail_shots, task_order="sequential")
    training = batches(algorithm, 2, shot=shot)
    for task in singles(training[0]):
        rows = algorithm.training_rows(task)
        tail = rows(STEPS - 1)
        assert torch.equal(task.support.y[tail].bincount(), torch.full((3,), tail_shots))
        assert not set(tail.tolist()) & {row for step in range(STEPS - 1) for row in rows(step).tolist()}
        assert all(len(rows(step)) == min(SIZE, 3 * (shot - tail_shots)) for step in range(STEPS - 1))
    assert_equal_training(
        algorithm,
        training,
        adam,
        rows=lambda task, step: held_out(task, step, shot=shot, tail_shots=tail_shots),
        last_alone=True,
    )


@pytest.mark.parametrize("dials", [{}, {"tail_shots": 1}, {"inner_optimizer": {"name": "sgd"}}])
def test_plans_of_foml_give_the_same(dials: dict[str, Any]) -> None:
    algorithm = made(FOML, **dials)
    (batch,) = batches(algorithm, 1)
    found = []
    for plan in (LOOP, TaskPlan("vmap"), TaskPlan("vmap", 2)):
        execute(algorithm, batch, plan)
        found.append([p.grad.clone() for p in algorithm.parameters()])
    for other in found[1:]:
        for grad, expected in zip(other, found[0], strict=True):
            assert (grad - expected).norm() <= 1e-9 * expected.norm() + 1e-12


@pytest.mark.parametrize(
    ("cls", "dials", "problem"),
    [
        (Reptile, {"task_order": "reversed"}, "algo.task_order"),
        (FOML, {"inner_optimizer": {"name": "lion"}}, "algo.inner_optimizer.name"),
        (
            FOML,
            {"adaptation_steps": 0},
            "algo.adaptation_steps=0, but algo=foml learns from the last",
        ),
        (
            FOML,
            {"tail_shots": 2},
            "algo.tail_shots=2 leaves none of 2 support rows of a class .* set it to 1",
        ),
    ],
)
def test_what_they_cannot_do_is_refused(cls: type[Algorithm], dials: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        made(cls, **dials)


@pytest.mark.parametrize(
    "words",
    [
        "algo=foml algo.tail_shots=0",
        "algo=foml algo.adaptation_steps=0",
        "algo=foml algo.inner_optimizer.name=lion",
        "algo=foml algo.inner_lr=0",
        "algo=reptile algo.task_order=reversed",
        "algo=imaml algo.proximal=0",
        "algo=imaml algo.order=2",
        "algo=imaml algo.solver=dense",
        "algo=imaml algo.solver_steps=0",
        "algo=imaml algo.adaptation_steps=0",
        "algo=maml algo.proximal=-1",
    ],
)
def test_a_value_out_of_range_is_refused_in_one_sentence(words: str) -> None:
    key = words.split()[1].partition("=")[0]
    with pytest.raises(ConfigError, match=key) as refusal:
        compose(words.split())
    assert len(refusal.value.problems) == 1
