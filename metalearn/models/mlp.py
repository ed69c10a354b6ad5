"""A plain multi-layer perceptron without norms, as in MAML's sinusoid regression (Finn et al. 2017, §5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import InputSpec
from metalearn.models.base import Model, Statistics, initialise
from metalearn.models.context import beside, unmoved, widen


class MLP(Model):
    """Inputs (n, …), flattened → features (n, hidden[-1]); ReLU after every layer."""

    def __init__(
        self,
        input_spec: InputSpec,
        *,
        hidden: Sequence[int],
        init: str,
        head_init: str,
    ) -> None:
        super().__init__(init=init, head_init=head_init)
        if isinstance(input_spec, dict):
            raise ValueError(
                f"model=mlp needs one tensor, not a mapping of {', '.join(sorted(input_spec))}; choose "
                "model=user_item"
            )
        widths = [prod(input_spec.shape), *hidden]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True))
        self.out_features = widths[-1]
        initialise(self, init)
        self.register_parameter("context", None)

    def add_context(self, num_context: int) -> None:
        """Let the first layer read so many context parameters beside the inputs."""
        widen(self.layers, num_context, self.init)
        self.context = unmoved(num_context)

    def forward(
        self, x: Tensor, given: Statistics | None = None, mask: Tensor | None = None, step: int | Tensor = 0
    ) -> tuple[Tensor, Statistics]:
        x = beside(x.flatten(1), self.context)
        for layer in self.layers:
            x = F.relu(layer(x))
        return x, ()
