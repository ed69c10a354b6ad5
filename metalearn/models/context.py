"""Context parameters: inputs of a network that all rows of a task share, and which alone are adapted to it
(CAVIA, Zintgraf et al. 2019, arXiv:1810.03642, §3).

A model that has a place for them defines `add_context(num_context)`, which makes the parameter `context` and
what reads it. Until it is called the model has neither.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metalearn.models.base import initialise


def unmoved(num_context: int) -> nn.Parameter:
    """Context parameters (num_context,), which start at 0; no outer optimizer moves them."""
    return nn.Parameter(torch.zeros(num_context), requires_grad=False)


def widen(layers: nn.ModuleList, num_context: int, init: str) -> None:
    """Make the first of these linear layers anew, so that it reads context parameters beside its inputs."""
    if not layers:
        raise ValueError(
            "algo=cavia needs a layer that reads context parameters, but the model has no hidden layer; add "
            "one"
        )
    first = layers[0]
    assert isinstance(first, nn.Linear)
    layers[0] = initialise(nn.Linear(first.in_features + num_context, first.out_features), init)


def beside(x: Tensor, context: Tensor | None) -> Tensor:
    """Rows (n, D) → (n, D + num_context)."""
    return x if context is None else torch.cat([x, context.expand(len(x), -1)], dim=-1)


def film(x: Tensor, layer: nn.Linear | None, context: Tensor | None) -> Tensor:
    """Feature-wise linear modulation (Perez et al. 2018, arXiv:1709.07871): channel c of x (n, C, …) becomes
    (1 + γ_c)·x + β_c, with γ and β (C,) linear in the context. layer: num_context → 2C.
    """
    if layer is None:
        return x
    scale, shift = layer(context).view(2, -1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift, x, 1 + scale)
