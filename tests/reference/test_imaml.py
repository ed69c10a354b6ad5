"""iMAML against a dense implicit solve, finite differences of the solved inner problem, and MAML; its two
solvers against linear algebra.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

from metalearn.algorithms.imaml import IMAML, conjugate_gradient, neumann
from metalearn.algorithms.maml import MAML
from metalearn.core import Algorithm, Examples, InputSpec, TaskBatch, TaskSpec, map_leaves
from metalearn.engine.executor import TaskPlan, execute
from metalearn.engine.memory import peak_bytes
from metalearn.models.base import Model, Statistics, initialise
from metalearn.models.conv4 import Conv4
from metalearn.objectives import Classification
from tests.reference.tasks import IMAGE, image_spec, image_tasks
from tests.reference.test_gradients import mismatch
from tests.shipped import built

LOOP = TaskPlan("loop")
INPUT, WAY = InputSpec((3,)), 3
SPEC = TaskSpec("classification", Classification(), WAY, INPUT, 6, 6, WAY, num_train_classes=7)
NAMES = ("model.layer.weight", "model.layer.bias", "head.weight", "head.bias")
CONVERGED = {"inner_lr": 0.4, "adaptation_steps": 150, "proximal": 1.0}
EXACT = {"solver": "cg", "solver_steps": 31, "least_curvature": 0.0}  # as many as there are parameters


class Smooth(Model):
    """A hidden layer without kinks, at which a minimum would have no second derivative."""

    def __init__(self) -> None:
        super().__init__(init="normal", head_init="normal")
        self.layer, self.out_features = nn.Linear(3, 4), 4
        initialise(self, "normal")

    def forward(
        self, x: Tensor, given: Any = None, mask: Tensor | None = None, step: int | Tensor = 0
    ) -> tuple[Tensor, Statistics]:
        return torch.tanh(self.layer(x)), ()


def made(cls: type[Algorithm], **dials: Any) -> Any:
    torch.manual_seed(0)
    return built(cls, Smooth(), SPEC, **dials).double()


def tasks(count: int = 1) -> TaskBatch:
    rng = torch.Generator().manual_seed(1)
    y = torch.arange(WAY).repeat_interleave(2).expand(count, -1)

    def examples() -> Examples:
        x = torch.randn(count, 6, 3, generator=rng, dtype=torch.float64)
        return Examples(x, y, torch.ones_like(y, dtype=torch.bool))

    return TaskBatch(examples(), examples(), torch.arange(count))


def gradient(algorithm: Algorithm, batch: TaskBatch, plan: TaskPlan = LOOP) -> dict[str, Tensor]:
    execute(algorithm, batch, plan)
    return {name: p.grad.clone() for name, p in algorithm.named_parameters()}


def vector(tree: dict[str, Tensor], names: tuple[str, ...] = NAMES) -> Tensor:
    return torch.cat([tree[name].detach().flatten() for name in names])


def loss_of(weights: Tensor, rows: Examples) -> Tensor:
    """The network and its loss once more, of all 31 parameters in one row."""
    into, bias, head, head_bias = weights.split([12, 4, 12, 3])
    hidden = torch.tanh(F.linear(rows.x, into.view(4, 3), bias))
    return F.cross_entropy(F.linear(hidden, head.view(3, 4), head_bias), rows.y)


def solved(algorithm: IMAML, task: TaskBatch) -> tuple[Tensor, Examples, Examples]:
    """Adapted weights of all parameters in one row, support and query, of the one task."""
    one = map_leaves(lambda leaf: leaf[0], task)
    adapted = algorithm.adapt(one, steps=algorithm.adaptation_steps)["weights"]
    everything = {**dict(algorithm.named_parameters()), **adapted}
    return vector(everything), one.support, one.query


@pytest.mark.parametrize("plan", [LOOP, TaskPlan("vmap")], ids=str)
@pytest.mark.parametrize("proximal", [0.7, 5.0])
def test_its_gradient_is_that_of_a_dense_solve(proximal: float, plan: TaskPlan) -> None:
    algorithm, batch = made(IMAML, inner_lr=0.1, adaptation_steps=60, proximal=proximal, **EXACT), tasks()
    phi, support, query = solved(algorithm, batch)
    curvature = hessian(lambda w: loss_of(w, support), phi)
    slope = jacobian(lambda w: loss_of(w, query), phi)
    expected = torch.linalg.solve(torch.eye(31).double() + curvature / proximal, slope)
    torch.testing.assert_close(vector(gradient(algorithm, batch, plan)), expected, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(slope, expected, rtol=1e-2)


def test_what_is_not_adapted_has_the_gradient_of_a_dense_solve() -> None:
    """The head alone adapts: the layer below has the query's gradient, less what the solution follows."""
    algorithm, batch = made(IMAML, **CONVERGED, **EXACT, adapts="head"), tasks()
    phi, support, query = solved(algorithm, batch)
    curvature = hessian(lambda w: loss_of(w, support), phi)
    slope = jacobian(lambda w: loss_of(w, query), phi)
    body, head = torch.arange(31) < 16, torch.arange(31) >= 16
    system = CONVERGED["proximal"] * torch.eye(15).double() + curvature[head][:, head]
    followed = torch.linalg.solve(system, slope[head])
    expected = torch.cat([slope[body] - curvature[body][:, head] @ followed, followed])
    torch.testing.assert_close(vector(gradient(algorithm, batch)), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("adapts", ["all", "head"])
def test_it_is_the_derivative_of_what_a_solved_inner_loop_comes_to(adapts: str) -> None:
    """By finite differences through the inner loop itself, which the gradient never sees."""
    solved, begun = (
        made(IMAML, **{**CONVERGED, "adaptation_steps": steps}, **EXACT, adapts=adapts) for steps in (150, 1)
    )
    assert mismatch(solved, tasks(2)) < 1e-6
    assert mismatch(begun, tasks(2)) > 1e-2


def test_mamls_gradient_comes_to_it_with_the_steps_and_to_the_plain_one_with_lambda() -> None:
    batch = tasks()
    expected = vector(gradient(made(IMAML, **CONVERGED, **EXACT), batch))

    def gap(steps: int, proximal: float = 1.0) -> float:
        maml = made(MAML, inner_lr=0.4, adaptation_steps=steps, proximal=proximal)
        return float((vector(gradient(maml, batch)) - expected).norm() / expected.norm())

    gaps = [gap(steps) for steps in (5, 20, 80, 150)]
    assert gaps == sorted(gaps, reverse=True), gaps
    assert gaps[-1] < 1e-8 < 1e-2 < gaps[0]
    assert gap(150, proximal=0.3) > 1e-2
    plain = vector(gradient(made(MAML, adaptation_steps=0), batch))
    stiff = made(IMAML, inner_lr=1e-6, adaptation_steps=50, proximal=1e6, **EXACT)
    torch.testing.assert_close(vector(gradient(stiff, batch)), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("solver", ["cg", "neumann"])
@pytest.mark.parametrize("plan", [TaskPlan("vmap"), TaskPlan("vmap", 2)], ids=str)
def test_plans_give_the_same_gradient(plan: TaskPlan, solver: str) -> None:
    torch.manual_seed(0)
    model = built(Conv4, IMAGE, channels=4, norm_statistics="support")
    dials = {"inner_lr": 0.3, "adaptation_steps": 3, "solver": solver}
    algorithm = built(IMAML, model, image_spec(), **dials).double()
    expected = gradient(algorithm, image_tasks(3))
    for name, grad in gradient(algorithm, image_tasks(3), plan).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("plan", [LOOP, TaskPlan("vmap")], ids=str)
def test_its_memory_does_not_grow_with_the_inner_steps(plan: TaskPlan) -> None:
    def peak(cls: type[Algorithm], steps: int) -> int:
        torch.manual_seed(0)
        model = built(Conv4, IMAGE, channels=8)
        algorithm = built(cls, model, image_spec(), inner_lr=0.01, adaptation_steps=steps)
        batch = map_leaves(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, image_tasks(2))
        return peak_bytes(lambda: execute(algorithm, batch, plan), torch.device("cpu"))

    assert peak(IMAML, 24) == peak(IMAML, 3)
    assert peak(MAML, 24) > 4 * peak(MAML, 3)


def test_its_training_lowers_the_loss() -> None:
    algorithm, batch = made(IMAML, inner_lr=0.4, proximal=0.5), tasks(3)
    outer = torch.optim.Adam(algorithm.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        losses.append(float(execute(algorithm, batch, TaskPlan("vmap"))[0].mean()))
        outer.step()
    assert losses[-1] < 0.5 * losses[0], losses


def system(size: int = 12, least: float = 0.1) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(size)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64))
    values = torch.linspace(least, 4, size, dtype=torch.float64)
    return basis * values @ basis.T, torch.randn(size, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("steps", [12, 40])
def test_conjugate_gradient_solves_a_positive_system_and_stays_there(steps: int) -> None:
    matrix, b = system()
    found = conjugate_gradient(lambda v: matrix @ v, b, steps)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b), rtol=1e-9, atol=1e-9)


def test_conjugate_gradient_is_the_best_of_its_krylov_space_after_every_step() -> None:
    matrix, b = system()
    krylov = torch.stack([torch.linalg.matrix_power(matrix, k) @ b for k in range(4)], 1)
    best = krylov @ torch.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ b)
    torch.testing.assert_close(conjugate_gradient(lambda v: matrix @ v, b, 4), best, rtol=1e-8, atol=1e-9)


def test_conjugate_gradient_stops_at_negative_curvature() -> None:
    matrix = torch.diag(torch.tensor([1.0, 2.0, -0.1], dtype=torch.float64))
    first = torch.tensor([0.0, 0.1, 3.0], dtype=torch.float64)  # b itself has a negative curvature
    later = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    assert first @ matrix @ first < 0 < later @ matrix @ later
    assert torch.equal(conjugate_gradient(lambda v: matrix @ v, first, 8), first)
    steps = [conjugate_gradient(lambda v: matrix @ v, later, n) for n in range(9)]
    stop = next(n for n in range(1, 8) if torch.equal(steps[n], steps[n + 1]))
    assert 1 <= stop < 3
    assert all(torch.equal(step, steps[stop]) for step in steps[stop:])
    # Each step up to there has lowered x·Ax/2 − b·x, which has no minimum.
    energy = [float(x @ matrix @ x / 2 - later @ x) for x in steps[: stop + 1]]
    assert energy == sorted(energy, reverse=True)


def test_conjugate_gradient_stops_before_a_small_curvature_magnifies_what_it_solves() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1e-3], dtype=torch.float64))
    b = torch.tensor([1.0, 1.0, 0.1], dtype=torch.float64)
    careful, exact = (conjugate_gradient(lambda v: matrix @ v, b, 3, least) for least in (1.0, 0.0))
    torch.testing.assert_close(exact, torch.linalg.solve(matrix, b))
    assert careful.norm() < b.norm() < 0.1 * exact.norm()
    assert torch.equal(conjugate_gradient(lambda v: matrix @ v, b, 3, 4.0), b)


def test_many_systems_at_once_stop_where_each_stops_alone() -> None:
    matrices = torch.stack([system(6)[0], system(6, least=-1.0)[0], torch.eye(6).double()])
    b = torch.stack([system(6)[1], system(6)[1], torch.zeros(6).double()])
    together = torch.vmap(lambda a, b: conjugate_gradient(lambda v: a @ v, b, 9))(matrices, b)
    for matrix, of, found in zip(matrices, b, together, strict=True):
        torch.testing.assert_close(found, conjugate_gradient(lambda v, a=matrix: a @ v, of, 9))
    assert together.isfinite().all()
    assert torch.equal(together[2], b[2])


def test_the_neumann_series_is_the_polynomial_that_it_says_and_solves_the_system() -> None:
    matrix, b = system()
    eye = torch.eye(12).double()
    proximal = 5.0
    product = lambda v: v + matrix @ v / proximal  # noqa: E731
    powers = [torch.linalg.matrix_power(-matrix / proximal, k) @ b for k in range(6)]
    torch.testing.assert_close(neumann(product, b, 5, 1.0), torch.stack(powers).sum(0))
    rate, shrink = 0.1, eye - 0.1 * (matrix + proximal * eye)  # inner_lr 0.1
    series = sum(rate * proximal * torch.linalg.matrix_power(shrink, k) @ b for k in range(4))
    torch.testing.assert_close(
        neumann(product, b, 4, rate * proximal), series + torch.linalg.matrix_power(shrink, 4) @ b
    )
    exact = torch.linalg.solve(eye + matrix / proximal, b)
    torch.testing.assert_close(neumann(product, b, 200, rate * proximal), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("dials", "problem"),
    [
        ({"proximal": 0.0}, "algo.proximal=0.0, but without a proximal term the solution does not depend"),
        ({"order": 2}, "algo.order"),
        ({"solver": "dense"}, "algo.solver"),
        ({"adapts": "neck"}, "algo.adapts=neck: neck matches no parameter"),
    ],
)
def test_what_it_cannot_do_is_refused(dials: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        made(IMAML, **dials)
