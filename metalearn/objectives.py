"""What predictions are judged by: one loss and its metrics per kind of task. Masked rows never count.

A mask of None says that all rows are real. Shapes that do not fit are refused, since PyTorch would broadcast them and train on
nonsense in silence. Shapes are known without looking at values, so that this costs nothing on a GPU or in a compiled graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real rows of (n,) values; 0 when there are none. ValueError unless the mask is (n,) too."""
    if mask is None:
        return values.mean()
    if values.shape != mask.shape:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit values of shape {tuple(values.shape)}; both must be (n,)")
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def squared_error(prediction: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real rows and target dimensions. prediction and y: (n, D)."""
    require_targets(prediction, y)
    if mask is None:
        return F.mse_loss(prediction, y)
    return masked_mean(F.mse_loss(prediction, y, reduction="none").mean(-1), mask)


def require_labels(prediction: Tensor, y: Tensor) -> None:
    """ValueError unless the prediction is (n, W) and y holds n labels."""
    if prediction.ndim != 2 or y.shape != prediction.shape[:1] or y.is_floating_point():
        raise ValueError(
            f"classification judges logits (n, W) against n whole labels, but the prediction has shape {tuple(prediction.shape)} "
            f"and y has shape {tuple(y.shape)} of {y.dtype}"
        )


def require_targets(prediction: Tensor, y: Tensor) -> None:
    """ValueError unless prediction and y are both (n, D)."""
    if prediction.ndim != 2 or prediction.shape != y.shape:
        raise ValueError(
            f"regression and rating judge predictions (n, D) against targets of the same shape, but the prediction has shape "
            f"{tuple(prediction.shape)} and y has shape {tuple(y.shape)}"
        )


class Classification:
    """Cross-entropy in nats and accuracy in 0…1. prediction: logits (n, W); y: int64 labels (n,)."""

    primary = "accuracy"
    higher_is_better = True

    def loss(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        require_labels(prediction, y)
        return masked_mean(F.cross_entropy(prediction, y, reduction="none"), mask)

    def metrics(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        require_labels(prediction, y)
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
        rmse = self.loss(prediction, y, mask).sqrt()
        return {"mae": masked_mean((prediction - y).abs().mean(-1), mask), "rmse": rmse}
