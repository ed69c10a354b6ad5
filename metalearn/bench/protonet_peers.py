"""ProtoNet as others write it: embed support and query of a task as one batch, class means, squared
distances.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.bench.peers import Answer, Run, Tensors, forget, gradients
from metalearn.bench.plain_networks import PlainNetwork

# T tasks, S support rows, Q query rows, W ways, D features
# support features (S, D), their labels (S,), query features (Q, D) → (Q, W)
Logits = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain() -> Logits:
    def logits(z_SD: Tensor, y_S: Tensor, z_QD: Tensor) -> Tensor:
        way = int(y_S[-1]) + 1
        # the support is sorted by label, as loaders of episodes have it
        p_WD = z_SD.view(way, -1, z_SD.shape[-1]).mean(1)
        return -(z_QD[:, None] - p_WD).square().sum(-1)

    return logits


def learn2learn() -> Logits:
    from learn2learn.nn import PrototypicalClassifier

    def logits(z_SD: Tensor, y_S: Tensor, z_QD: Tensor) -> Tensor:
        return PrototypicalClassifier(z_SD, y_S)(z_QD)  # type: ignore[no-any-return]

    return logits


def meta_gradient(network: PlainNetwork, batch: Tensors, logits: Logits) -> Run:
    """Losses of the queries, and the gradient of their mean, one task after the other."""
    weights = dict(zip(network.names, network.parameters, strict=True))

    def run() -> Answer:
        forget(weights)
        losses = []
        for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
            z = network.features(network.parameters, torch.cat([support_x, query_x]))
            z_SD, z_QD = z[: len(support_y)], z[len(support_y) :]
            loss = F.cross_entropy(logits(z_SD, support_y, z_QD), query_y)
            (loss / len(batch.support_x)).backward()
            losses.append(loss.detach())
        return {"loss": torch.stack(losses), **gradients(weights)}

    return run
