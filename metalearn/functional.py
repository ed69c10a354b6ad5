"""Pure inner loops over dicts of parameters, written for one task; plans map and differentiate them.

`descend` is every inner loop: an iterator over what it has after so many steps, so that a curve over step
counts costs one descent. `counts` are ascending, and `next(descend(…, counts=[steps]))` is the result of one
number of steps. An update is a function of (weights, gradients, step); one that remembers, as `Momentum`,
`Adam` and `RMSprop` do, is made anew for every descent. All of them can be differentiated through.
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
Rate = float | Callable[[int], float]  # of every step, or a function of the step
RULES = ("sgd", "momentum", "adam", "rmsprop")
ANNEALS = ("constant", "linear", "cosine")


def descend(
    loss: Loss,
    start: Parameters,
    update: Update,
    *,
    counts: Sequence[int],
    first_order: bool | Tensor,
    losses: list[Tensor] | None = None,
) -> Iterator[Parameters]:
    """The weights after each of `counts` steps of weights ← update(weights, ∇loss(weights, step), step), from
    `start`.

    first_order: treat every inner gradient as a constant, so that no second derivative is taken. A tensor ()
    says it as data, for one graph that has both: its second derivatives are taken, and count for nothing.
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


def slope(
    loss: Loss, weights: Parameters, step: int, *, first_order: bool | Tensor
) -> tuple[Parameters, Tensor]:
    """Gradient and value of the loss at these weights, each of which counts as a variable of its own."""
    if isinstance(first_order, Tensor):
        grads, value = slope(loss, weights, step, first_order=False)
        return {n: torch.where(first_order, g.detach(), g) for n, g in grads.items()}, value
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


def optimizer(
    *,
    name: str,
    lr: float,
    steps: int,
    momentum: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    clip: float | None,
    anneal: str,
) -> Update:
    """One descent's update by the name of its rule, as `torch.optim` has it but for eps, which is within the
    root. The gradient is clipped first, then decayed. steps: in which `anneal` takes the rate to 0.
    """
    rate = annealed(lr, anneal, steps)
    update: Update
    if name == "sgd":
        update = gradient_descent(rate)
    elif name == "momentum":
        update = Momentum(lr=rate, momentum=momentum)
    elif name == "adam":
        update = Adam(lr=rate, beta1=beta1, beta2=beta2, eps_root=eps)
    elif name == "rmsprop":
        update = RMSprop(lr=rate, decay=beta2, eps_root=eps)
    else:
        raise ValueError(f"name={name} is none of {', '.join(RULES)}")
    update = decayed(update, weight_decay) if weight_decay else update
    return update if clip is None else clipped(update, clip)


def clipped(update: Update, norm: float) -> Update:
    """With a gradient whose 2-norm, over all weights together, is `norm` at most."""

    def clip(weights: Parameters, grads: Parameters, step: int) -> Parameters:
        square = torch.stack([g.square().sum() for g in grads.values()]).sum()
        # No root of what may be zero: a gradient of zero has a second derivative too.
        factor = (square / norm**2).clamp(min=1).sqrt()
        return update(weights, {name: g / factor for name, g in grads.items()}, step)

    return clip


def decayed(update: Update, weight_decay: float) -> Update:
    """With weight_decay · weights added to the gradient, as `torch.optim` has it."""
    return lambda weights, grads, step: update(weights, with_decay(grads, weights, weight_decay), step)


def with_decay(grads: Parameters, weights: Parameters, weight_decay: float) -> Parameters:
    return {name: grads[name] + weight_decay * w for name, w in weights.items()}


def annealed(lr: float, anneal: str, steps: int) -> Rate:
    """A rate that falls from lr towards 0, which it has after `steps` steps, on a line or along a cosine, or
    stays.
    """
    if anneal == "constant":
        return lr
    if anneal == "linear":
        return lambda step: lr * max(1 - step / max(steps, 1), 0.0)
    if anneal == "cosine":
        return lambda step: lr * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0))) / 2
    raise ValueError(f"anneal={anneal} is none of {', '.join(ANNEALS)}")


def at(lr: Rate, step: int) -> float:
    return lr(step) if callable(lr) else lr


def gradient_descent(lr: Rate) -> Update:
    """weights ← weights − lr·gradient."""

    def update(weights: Parameters, grads: Parameters, step: int) -> Parameters:
        rate = at(lr, step)
        return {name: w - rate * grads[name] for name, w in weights.items()}

    return update


class Momentum:
    """`torch.optim.SGD`'s update with momentum, dampening and weight decay."""

    def __init__(
        self, *, lr: Rate, momentum: float, dampening: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        self.lr, self.momentum, self.dampening, self.weight_decay = lr, momentum, dampening, weight_decay
        self.velocity: Parameters = {}

    def __call__(self, weights: Parameters, grads: Parameters, step: int) -> Parameters:
        grads = with_decay(grads, weights, self.weight_decay) if self.weight_decay else grads
        if self.velocity:
            grads = {
                name: self.momentum * self.velocity[name] + (1 - self.dampening) * g
                for name, g in grads.items()
            }
        self.velocity = grads
        rate = at(self.lr, step)
        return {name: w - rate * grads[name] for name, w in weights.items()}


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1).

    second, taken: the second moment to start from, before bias correction, and the number of steps that it
    has seen; by default none. eps: as in the paper, outside of the root, whose slope at 0 is infinite.
    eps_root: within it, for who differentiates through: a weight without a gradient has a second moment of 0.
    """

    def __init__(
        self,
        second: Parameters | None = None,
        taken: Tensor | int = 0,
        *,
        lr: Rate,
        beta1: float = 0.0,
        beta2: float = 0.999,
        eps: float = 1e-8,
        eps_root: float = 0.0,
    ) -> None:
        self.first: Parameters = {}
        self.second: Parameters = second or {}
        self.taken = taken
        self.lr, self.beta1, self.beta2, self.eps, self.eps_root = lr, beta1, beta2, eps, eps_root

    def __call__(self, weights: Parameters, grads: Parameters, step: int) -> Parameters:
        rate = at(self.lr, step)
        if not self.second:
            self.second = {name: (1 - self.beta2) * g.square() for name, g in grads.items()}
        else:
            self.second = {
                name: self.beta2 * s + (1 - self.beta2) * grads[name].square()
                for name, s in self.second.items()
            }
        if self.beta1:
            fresh = {name: (1 - self.beta1) * g for name, g in grads.items()}
            before = self.first
            self.first = {n: self.beta1 * before[n] + g for n, g in fresh.items()} if before else fresh
            rate, grads = rate / (1 - self.beta1 ** (step + 1)), self.first
        correction = self.correction(step, next(iter(weights.values())).dtype)
        root = {name: self.root(s / correction) for name, s in self.second.items()}
        return {name: w - rate * grads[name] / root[name] for name, w in weights.items()}

    def correction(self, step: int, dtype: torch.dtype) -> Tensor | float:
        """1 − beta2^t, exact for small t too."""
        seen = self.taken + step + 1
        if isinstance(seen, Tensor):
            return -torch.expm1(seen.to(dtype) * math.log(self.beta2))
        return -math.expm1(seen * math.log(self.beta2))

    def root(self, second: Tensor) -> Tensor:
        return (second + self.eps_root).sqrt() if self.eps_root else second.sqrt() + self.eps


class RMSprop:
    """RMSprop (Tieleman & Hinton 2012, lecture 6e). decay: of the second moment, alpha in `torch.optim`.
    eps_root: as in `Adam`.
    """

    def __init__(self, *, lr: Rate, decay: float, eps_root: float) -> None:
        self.lr, self.decay, self.eps_root = lr, decay, eps_root
        self.second: Parameters = {}

    def __call__(self, weights: Parameters, grads: Parameters, step: int) -> Parameters:
        squares = {name: (1 - self.decay) * g.square() for name, g in grads.items()}
        self.second = (
            {name: self.decay * self.second[name] + s for name, s in squares.items()}
            if self.second
            else squares
        )
        rate = at(self.lr, step)
        return {
            name: w - rate * grads[name] / (self.second[name] + self.eps_root).sqrt()
            for name, w in weights.items()
        }
