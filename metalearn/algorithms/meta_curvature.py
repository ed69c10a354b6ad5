"""Meta-Curvature (Park & Oliva 2019, arXiv:1902.03356), §3.2: the inner gradient, multiplied by matrices.

A convolution's gradient G, as (C_out, C_in, filter), becomes MC(G) = G ×₃ M_f ×₂ M_i ×₁ M_o, a linear
layer's M_o G M_iᵀ, and a vector's M_o G; the inner step is w ← w − inner_lr·MC(∇). The matrices start as the
identity, which is MAML, and are learned across tasks with the initial weights, under no constraint: they need
not be symmetric or positive, so that a step may also go up the support's loss.
Deviation: the paper's tables tell two variants apart, MC1 and MC2; this is the product above for both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metalearn.algorithms.base import learned_beside
from metalearn.algorithms.maml import MAML
from metalearn.core import Parameters, TaskSpec

# O outputs, I inputs, F elements of a filter: the modes of a gradient, of which a vector has O alone


class MetaCurvature(MAML):
    """matrices_lr: the outer rate of the matrices; None takes the common one."""

    def __init__(self, model: nn.Module, spec: TaskSpec, *, matrices_lr: float | None, **dials: Any) -> None:
        super().__init__(model, spec, **dials)
        self.matrices = nn.ModuleList(
            nn.ParameterList(torch.eye(size) for size in by_modes(w).shape)
            for w in self.present(self.adapted_names).values()
        )
        self.matrices_lr = matrices_lr

    def parameter_groups(self) -> list[dict[str, Any]]:
        return learned_beside(self, self.matrices.parameters(), lr=self.matrices_lr)

    def update(self, weights: Parameters, grads: Parameters, step: int) -> Parameters:
        """One inner step: w ← w − inner_lr·MC(∇)."""
        curved = {}
        for name, matrices in zip(self.adapted_names, self.matrices, strict=True):
            assert isinstance(matrices, nn.ParameterList)
            curved[name] = curve(grads[name], list(matrices))
        return super().update(weights, curved, step)


def curve(grad: Tensor, matrices: list[Tensor]) -> Tensor:
    """MC(grad): its product in every mode with the matrix of this mode."""
    product = by_modes(grad)
    for mode, matrix in enumerate(matrices):
        product = torch.tensordot(matrix, product, ([1], [mode])).movedim(0, mode)
    return product.reshape(grad.shape)


def by_modes(weight: Tensor) -> Tensor:
    """(O, I, …) → (O, I, F); a matrix or a vector as it is."""
    return weight.flatten(2) if weight.ndim > 2 else weight
