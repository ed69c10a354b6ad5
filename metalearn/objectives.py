"""What predictions are judged by: one loss and its metrics per kind of task. Masked rows never count.

A mask of None says that all rows are real.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real rows of (n,) values; 0 when there are none."""
    if mask is None:
        return values.mean()
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def squared_error(prediction: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real rows and target dimensions. prediction and y: (n, D)."""
    if mask is None:
        return F.mse_loss(prediction, y)
    return masked_mean(F.mse_loss(prediction, y, reduction="none").mean(-1), mask)


class Classification:
    """Cross-entropy in nats and accuracy in 0…1. prediction: logits (n, W); y: int64 labels (n,)."""

    primary = "accuracy"
    higher_is_better = True

    def loss(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return masked_mean(F.cross_entropy(prediction, y, reduction="none"), mask)

    def metrics(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return {"accuracy": masked_mean((prediction.argmax(-1) == y).to(prediction.dtype), mask)}


class Regression:
    """Mean squared error, a true mean over rows and target dimensions. prediction and y: (n, D)."""

    primary = "mse"
    higher_is_better = False

    def loss(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return squared_error(prediction, y, mask)

    def metrics(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return {"mse": self.loss(prediction, y, mask)}


class Rating:
    """Squared error to train on; MAE and RMSE per task, in the rating's own unit. prediction and y: (n, 1)."""

    primary = "mae"
    higher_is_better = False

    def loss(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return squared_error(prediction, y, mask)

    def metrics(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return {"mae": masked_mean((prediction - y).abs().mean(-1), mask), "rmse": self.loss(prediction, y, mask).sqrt()}
