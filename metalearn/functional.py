"""Pure inner loops over dicts of parameters, written for one task; `torch.func` maps and differentiates them.

Each is an iterator over what it has after so many steps, so that a curve over step counts costs one descent:
counts are ascending, and `next(loop(…, counts=[steps]))` is the result of one number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from metalearn.core import Parameters

Loss = Callable[[Parameters], Tensor]


def gradient_descent(
    loss: Loss, weights: Parameters, *, lr: float | Tensor, counts: Sequence[int], first_order: bool
) -> Iterator[Parameters]:
    """The weights after each of `counts` steps of w ← w − lr·∇loss(w).

    first_order: treat every inner gradient as a constant, so that no second derivative is taken.
    """
    for done, count in pairwise([0, *counts]):
        for _ in range(done, count):
            # Without grad mode an outer `grad` records nothing here, so that first order does not pay second order's memory.
            with torch.no_grad() if first_order else nullcontext():
                grads = grad(loss)(weights)
            weights = {name: weight - lr * grads[name] for name, weight in weights.items()}
        yield weights


def minibatch_adam(
    loss: Callable[[Parameters, int], Tensor],
    weights: Parameters,
    second: Parameters,
    taken: Tensor,
    *,
    lr: float,
    counts: Sequence[int],
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> Iterator[tuple[Parameters, Parameters, Tensor]]:
    """`counts` steps of Adam with beta1 = 0 (Kingma & Ba 2015, alg. 1) on loss(weights, step); no second order.

    second, taken: the second moment to start from, before bias correction, and the number of steps that it has seen.
    Yields the weights, the second moment and the mean of the losses before each step.
    """
    total = torch.zeros((), dtype=next(iter(weights.values())).dtype, device=next(iter(weights.values())).device)
    for done, count in pairwise([0, *counts]):
        for step in range(done, count):
            with torch.no_grad():
                grads, value = grad_and_value(loss)(weights, step)
            correction = -torch.expm1((taken + step + 1).to(total.dtype) * math.log(beta2))  # 1 − beta2^t, exact for small t too
            second = {name: beta2 * s + (1 - beta2) * grads[name].square() for name, s in second.items()}
            weights = {name: w - lr * grads[name] / ((second[name] / correction).sqrt() + eps) for name, w in weights.items()}
            total = total + value
        yield weights, second, total / max(count, 1)


def momentum_sgd(
    loss: Callable[[Parameters, int], Tensor],
    weights: Parameters,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    counts: Sequence[int],
) -> Iterator[Parameters]:
    """The weights after each of `counts` steps of `torch.optim.SGD`'s update on loss(weights, step); no second order."""
    velocity: Parameters = {}
    for done, count in pairwise([0, *counts]):
        for step in range(done, count):
            with torch.no_grad():
                grads = grad(loss)(weights, step)
            decayed = {name: grads[name] + weight_decay * w for name, w in weights.items()}
            velocity = {name: momentum * velocity[name] + (1 - dampening) * g if velocity else g for name, g in decayed.items()}
            weights = {name: w - lr * velocity[name] for name, w in weights.items()}
        yield weights
