"""Embeddings of a user's and an item's attributes, joined, then decision layers (MeLU, Lee et al. 2019,
§3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import InputSpec
from metalearn.models.base import Model, Statistics, initialise
from metalearn.models.context import beside, unmoved, widen


class UserItem(Model):
    """A mapping of rows → features (n, decision[-1]).

    Integer codes (n, A) become A embeddings each; numbers pass as they are. `decision` are the widths of the
    layers that MeLU adapts to a user; the embeddings change in the outer loop only.
    """

    def __init__(
        self,
        input_spec: dict[str, InputSpec],
        *,
        embedding_dim: int,
        decision: Sequence[int],
        init: str,
        head_init: str,
    ) -> None:
        super().__init__(init=init, head_init=head_init)
        if not isinstance(input_spec, dict):
            raise ValueError(
                "model=user_item needs a mapping of inputs (user, item, …); choose model=conv4 for images or "
                "model=mlp for vectors"
            )
        self.names = sorted(input_spec)
        self.embeddings = nn.ModuleDict()
        width = 0
        for name in self.names:
            spec = input_spec[name]
            if spec.num_categories is not None:
                self.embeddings[name] = nn.Embedding(spec.num_categories, embedding_dim)
            width += prod(spec.shape) * (embedding_dim if spec.num_categories is not None else 1)
        widths = [width, *decision]
        self.decision = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True))
        self.out_features = widths[-1]
        initialise(self, init)
        self.register_parameter("context", None)

    def add_context(self, num_context: int) -> None:
        """Let the first layer read so many context parameters beside the embeddings."""
        widen(self.decision, num_context, self.init)
        self.context = unmoved(num_context)

    def forward(
        self,
        x: dict[str, Tensor],
        given: Statistics | None = None,
        mask: Tensor | None = None,
        step: int | Tensor = 0,
    ) -> tuple[Tensor, Statistics]:
        columns = [
            (self.embeddings[name](x[name]) if name in self.embeddings else x[name]).flatten(1)
            for name in self.names
        ]
        features = beside(torch.cat(columns, dim=-1), self.context)
        for layer in self.decision:
            features = F.relu(layer(features))
        return features, ()
