"""iMAML (Rajeswaran, Finn, Kakade & Levine 2019, arXiv:1909.04630), algorithms 1 and 2.

Adapt by gradient descent on the support's loss plus λ/2·‖φ − θ‖²; by the implicit function theorem the outer
gradient at its minimum is (I + H/λ)⁻¹·∇L_query(φ), with H the Hessian of the support's loss at φ (equations 6
and 7). It needs φ alone, so that memory does not grow with the number of inner steps.
What the inner loop leaves alone has the gradient that remains of it: ∇L_query − (∂²L_support/∂rest ∂φ)·(…)/λ.
Deviation: conjugate gradient stops where the curvature is small or negative (Nocedal & Wright 2006, algorithm
7.1), since the support's loss of a network is not convex; released code damps the system instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vjp

from metalearn.algorithms.maml import MAML
from metalearn.core import Batch, Metrics, Parameters, Plan, Task, TaskSpec, blank_query, one_of

Product = Callable[[Tensor], Tensor]  # of a symmetric matrix and a vector


class IMAML(MAML):
    """proximal: λ. solver: what inverts I + H/λ, `cg` or `neumann`. solver_steps: its products with H.
    least_curvature: of I + H/λ along a direction, at which `cg` stops; 1 is where the support's loss is flat.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: TaskSpec,
        *,
        inner_lr: float,
        adaptation_steps: int,
        eval_adaptation_steps: int,
        order: int,
        adapts: str | Sequence[str],
        proximal: float,
        solver: str,
        solver_steps: int,
        least_curvature: float,
    ) -> None:
        super().__init__(
            model,
            spec,
            inner_lr=inner_lr,
            adaptation_steps=adaptation_steps,
            eval_adaptation_steps=eval_adaptation_steps,
            order=order,
            adapts=adapts,
            proximal=proximal,
            inner_loss="mean",
            warmup_steps=0,
        )
        one_of("algo.order", self.order, (1,))  # the inner loop is not differentiated
        one_of("algo.solver", solver, ("cg", "neumann"))
        if proximal <= 0:
            raise ValueError(
                f"algo.proximal={proximal}, but without a proximal term the solution does not depend on its "
                "start; set it above 0"
            )
        self.solver, self.solver_steps, self.least_curvature = solver, solver_steps, least_curvature

    def protocol(self) -> dict[str, Any]:
        common = {key: value for key, value in super().protocol().items() if key != "order"}
        solver = {"solver": self.solver, "solver_steps": self.solver_steps}
        return {**common, **solver, "least_curvature": self.least_curvature}

    def gradient(self, params: Parameters, tasks: Batch, how: Plan) -> tuple[Parameters, Tensor, Metrics]:
        def implicit(task: Task) -> tuple[Parameters, Tensor, Metrics]:
            return self.implicit_gradient(params, task)

        grads, losses, metrics = how.map(implicit, tasks)
        return {name: of_tasks.sum(0) for name, of_tasks in grads.items()}, losses, metrics

    def implicit_gradient(self, params: Parameters, task: Task) -> tuple[Parameters, Tensor, Metrics]:
        """Of one task, with its outer loss and metrics; `params` are where it begins."""
        phi = self.call(params, "solution", task)
        rest = {name: p for name, p in params.items() if name not in phi}
        outer, (loss, metrics) = grad(self.query_loss, has_aux=True)({**params, **phi}, task)
        of_phi = vjp(lambda phi: self.inner_slope(phi, rest, task), phi)[1]

        def product(vector: Tensor) -> Tensor:
            return vector + flat(of_phi(shaped(vector, phi))[0]) / self.proximal

        implicit = shaped(self.solve(product, flat({name: outer[name] for name in phi})), phi)
        if rest:
            of_rest = vjp(lambda rest: self.inner_slope(phi, rest, task), rest)[1]
            (mixed,) = of_rest(implicit)
            implicit |= {name: outer[name] - mixed[name] / self.proximal for name in rest}
        return {name: implicit[name] for name in params}, loss, metrics

    def solution(self, task: Task) -> Parameters:
        """φ: what the inner loop ends with, of which nothing is differentiated."""
        weights: Parameters = self.adapt(blank_query(task), steps=self.adaptation_steps)["weights"]
        return {name: w.detach() for name, w in weights.items()}

    def query_loss(self, weights: Parameters, task: Task) -> tuple[Tensor, tuple[Tensor, Metrics]]:
        """The outer loss at these weights, which are adapted already; once more, with its metrics."""
        adapted = self.call(weights, "prepare", weights, task, self.adaptation_steps)
        prediction = self.call(weights, "predict", adapted, task.query.x, task.query.mask)
        loss, metrics = self.judge(prediction, task.query)
        return loss, (loss, metrics)

    def inner_slope(self, phi: Parameters, rest: Parameters, task: Task) -> Parameters:
        """∇L_support at φ, without the proximal term."""

        def loss(weights: Parameters) -> Tensor:
            value: Tensor = self.call(rest, "support_loss", weights, task.support, self.adaptation_steps)
            return value

        return grad(loss)(phi)

    def solve(self, product: Product, b: Tensor) -> Tensor:
        if self.solver == "cg":
            return conjugate_gradient(product, b, self.solver_steps, self.least_curvature)
        return neumann(product, b, self.solver_steps, self.inner_lr * self.proximal)


def conjugate_gradient(product: Product, b: Tensor, steps: int, least_curvature: float = 0.0) -> Tensor:
    """The solution of product(x) = b after so many steps from 0, or before the first direction p with
    p·product(p) ≤ least_curvature·p·p; b itself if that is the first one of all.

    The stop is a mask, so that many systems can be solved at once and no step waits for the host.
    """
    x, r, p = torch.zeros_like(b), b, b
    rr = b @ b
    end = rr * torch.finfo(b.dtype).eps ** 2  # beyond it all is rounding
    going = rr > end
    for step in range(steps):
        product_p = product(p)
        curvature = p @ product_p
        curved = curvature > least_curvature * (p @ p)
        if step == 0:
            x = torch.where(curved, x, b)
        going = going & curved
        length = torch.where(going, rr / torch.where(going, curvature, 1.0), 0.0)
        x, r = x + length * p, r - length * product_p
        before, rr = rr, r @ r
        going = going & (rr > end)
        p = torch.where(going, r + rr / torch.where(going, before, 1.0) * p, p)
    return x


def neumann(product: Product, b: Tensor, steps: int, rate: float) -> Tensor:
    """The solution of product(x) = b after so many steps of x ← x + rate·(b − product(x)) from x = b.

    With product I + H/λ and rate inner_lr·λ these are the terms (I − inner_lr·(H + λI))ᵏ of the series of
    Lorraine, Vicol & Duvenaud 2020, arXiv:1911.02590, algorithm 3, which converges where the inner loop does;
    with inner_lr = 1/λ those of Σ(−H/λ)ᵏ.
    """
    x = b
    for _ in range(steps):
        x = x + rate * (b - product(x))
    return x


def flat(tree: Parameters) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in tree.values()])


def shaped(vector: Tensor, like: Parameters) -> Parameters:
    """The inverse of `flat`."""
    parts = vector.split([leaf.numel() for leaf in like.values()])
    return {name: part.view_as(leaf) for (name, leaf), part in zip(like.items(), parts, strict=True)}
