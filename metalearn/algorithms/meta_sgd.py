"""Meta-SGD (Li, Zhou, Chen & Li 2017, arXiv:1707.09835), algorithm 1: a rate for every parameter.

The inner step is w ← w − α∘∇, element by element, and α is learned across tasks with the initial weights, so
that it says how far and which way a task's gradient is followed. A rate may become negative, as in the paper:
nothing keeps it above zero.
Deviation: inner_lr, a number, starts all rates alike, where the paper draws them from [0.005, 0.1], which is
inner_lr=[0.005,0.1]; the inner loss is a mean over the support.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from metalearn.algorithms.base import learned_beside
from metalearn.algorithms.maml import MAML
from metalearn.core import Parameters, TaskSpec


class MetaSGD(MAML):
    """inner_lr: what every rate starts from, or [low, high] to draw it uniformly between. rates_lr: the outer
    rate of the rates; None takes the common one.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: TaskSpec,
        *,
        inner_lr: Any,
        rates_lr: float | None,
        **dials: Any,
    ) -> None:
        super().__init__(model, spec, inner_lr=inner_lr, **dials)
        low, high = bounds(inner_lr)
        weights = self.present(self.adapted_names)
        self.rates = nn.ParameterList(torch.empty_like(w).uniform_(low, high) for w in weights.values())
        self.rates_lr = rates_lr

    def parameter_groups(self) -> list[dict[str, Any]]:
        return learned_beside(self, self.rates.parameters(), lr=self.rates_lr)

    def update(self, weights: Parameters, grads: Parameters, step: int) -> Parameters:
        """One inner step: w ← w − α∘∇."""
        rates = dict(zip(self.adapted_names, self.rates, strict=True))
        return {name: w - rates[name] * grads[name] for name, w in weights.items()}


def bounds(inner_lr: float | Sequence[float]) -> tuple[float, float]:
    """Least and largest initial rate."""
    pair = [inner_lr] * 2 if isinstance(inner_lr, int | float) else list(inner_lr)
    if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
        raise ValueError(
            f"algo.inner_lr={inner_lr}: give a number above 0 that all rates start from, or [low, high] with "
            "0 < low <= high, such as [0.005,0.1]"
        )
    return pair[0], pair[1]
