"""Pure inner loops over dicts of parameters, written for one task; plans map and differentiate them.

`descend` is every inner loop: an iterator over what it has after so many steps, so that a curve over step
counts costs one descent. `counts` are ascending, and `next(descend(…, counts=[steps]))` is the result of one
number of steps. An update is a function of (weights, gradients, step); one that remembers, as `Momentum` and
`Adam` do, is made anew for every descent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor
from torch.func import grad_and_value

from metalearn.core import Parameters, is_transformed

Loss = Callable[[Parameters, int], Tensor]
Update = Callable[[Parameters, Parameters, int], Parameters]


def descend(
    loss: Loss,
    start: Parameters,
    update: Update,
    *,
    counts: Sequence[int],
    first_order: bool,
    losses: list[Tensor] | None = None,
) -> Iterator[Parameters]:
    """The weights after each of `counts` steps of weights ← update(weights, ∇loss(weights, step), step), from
    `start`.

    first_order: treat every inner gradient as a constant, so that no second derivative is taken.
    losses: is given the loss before each step.
    """
    weights = start
    for done, count in pairwise([0, *counts]):
        for step in range(done, count):
            grads, value = slope(loss, weights, step, first_order=first_order)
            weights = update(weights, grads, step)
            if losses is not None:
                losses.append(value)
        yield weights


def slope(loss: Loss, weights: Parameters, step: int, *, first_order: bool) -> tuple[Parameters, Tensor]:
    """Gradient and value of the loss at these weights, each of which counts as a variable of its own."""
    if is_transformed():
        # Without grad mode nothing is recorded here, so that first order does not pay second order's memory.
        with torch.no_grad() if first_order else nullcontext():
            grads, value = grad_and_value(loss)(weights, step)
        return grads, value
    # Outside of every mapping `torch.func` would only wrap each operation once more than ordinary autograd.
    further = torch.is_grad_enabled() and not first_order
    with torch.enable_grad():
        if further:
            # A view each, or what else depends on a weight would count in its gradient: a head that starts
            # from the body, or a loss that looks back at the start.
            leaves = {
                n: w.view_as(w) if w.requires_grad else w.detach().requires_grad_()
                for n, w in weights.items()
            }
        else:
            leaves = {n: w.detach().requires_grad_() for n, w in weights.items()}
        value = loss(leaves, step)
        found = torch.autograd.grad(
            value, list(leaves.values()), create_graph=further, materialize_grads=True
        )
    return dict(zip(leaves, found, strict=True)), value if further else value.detach()


def squared_distance(weights: Parameters, others: Parameters) -> Tensor:
    """‖weights − others‖², over all of them."""
    return torch.stack([(w - others[name]).square().sum() for name, w in weights.items()]).sum()


class Momentum:
    """`torch.optim.SGD`'s update with momentum, dampening and weight decay."""

    def __init__(self, *, lr: float, momentum: float, dampening: float, weight_decay: float) -> None:
        self.lr, self.momentum, self.dampening, self.weight_decay = lr, momentum, dampening, weight_decay
        self.velocity: Parameters = {}

    def __call__(self, weights: Parameters, grads: Parameters, step: int) -> Parameters:
        decayed = {name: grads[name] + self.weight_decay * w for name, w in weights.items()}
        if self.velocity:
            decayed = {
                name: self.momentum * self.velocity[name] + (1 - self.dampening) * g
                for name, g in decayed.items()
            }
        self.velocity = decayed
        return {name: w - self.lr * decayed[name] for name, w in weights.items()}


class Adam:
    """Adam with beta1 = 0 (Kingma & Ba 2015, algorithm 1).

    second, taken: the second moment to start from, before bias correction, and the number of steps that it
    has seen.
    """

    def __init__(
        self, second: Parameters, taken: Tensor, *, lr: float, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        self.second, self.taken = second, taken
        self.lr, self.beta2, self.eps = lr, beta2, eps

    def __call__(self, weights: Parameters, grads: Parameters, step: int) -> Parameters:
        dtype = next(iter(weights.values())).dtype
        # 1 − beta2^t, exact for small t too
        correction = -torch.expm1((self.taken + step + 1).to(dtype) * math.log(self.beta2))
        self.second = {
            name: self.beta2 * s + (1 - self.beta2) * grads[name].square() for name, s in self.second.items()
        }
        root = {name: (s / correction).sqrt() + self.eps for name, s in self.second.items()}
        return {name: w - self.lr * grads[name] / root[name] for name, w in weights.items()}
