"""Pure inner loops over dicts of parameters, written for one task; `torch.func` maps and differentiates them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.func import grad

from metalearn.core import Parameters

Loss = Callable[[Parameters], Tensor]


def gradient_descent(loss: Loss, weights: Parameters, *, lr: float | Tensor, steps: int, first_order: bool) -> Parameters:
    """`steps` steps of w ← w − lr·∇loss(w).

    first_order: treat every inner gradient as a constant, so that no second derivative is taken.
    """
    for _ in range(steps):
        grads = grad(loss)(weights)
        weights = {name: weight - lr * (grads[name].detach() if first_order else grads[name]) for name, weight in weights.items()}
    return weights
