"""What predictions are judged by: one loss and its metrics per kind of task. Masked rows never count.

A mask of None says that all rows are real. Shapes that do not fit are refused, since PyTorch would broadcast
them and train on nonsense in silence. Shapes are known without looking at values, so that this costs nothing
on a GPU or in a compiled graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core import MetricFormat

CONFIDENCE_BINS = 15  # Guo et al. 2017, arXiv:1706.04599, table 1


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real rows of (n,) values; 0 when there are none. ValueError unless the mask is (n,)
    too.
    """
    if mask is None:
        return values.mean()
    if values.shape != mask.shape:
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} does not fit values of shape {tuple(values.shape)}; both "
            "must be (n,)"
        )
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def squared_error(prediction: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real rows and target dimensions. prediction and y: (n, D)."""
    require_targets(prediction, y)
    if mask is None:
        error = prediction - y
        return (error * error).mean()
    return masked_mean(F.mse_loss(prediction, y, reduction="none").mean(-1), mask)


def require_labels(prediction: Tensor, y: Tensor) -> None:
    """ValueError unless the prediction is (n, W) and y holds n labels."""
    if prediction.ndim != 2 or y.shape != prediction.shape[:1] or y.is_floating_point():
        raise ValueError(
            "classification judges logits (n, W) against n whole labels, but the prediction has shape "
            f"{tuple(prediction.shape)} "
            f"and y has shape {tuple(y.shape)} of {y.dtype}"
        )


def require_targets(prediction: Tensor, y: Tensor) -> None:
    """ValueError unless prediction and y are both (n, D)."""
    if prediction.ndim != 2 or prediction.shape != y.shape:
        raise ValueError(
            "regression and rating judge predictions (n, D) against targets of the same shape, but the "
            "prediction has shape "
            f"{tuple(prediction.shape)} and y has shape {tuple(y.shape)}"
        )


class Classification:
    """Cross-entropy in nats, accuracy and calibration error in 0…1. prediction: logits (n, W); y: int64
    labels (n,).
    """

    primary = "accuracy"
    higher_is_better = True
    formats = {
        "loss": MetricFormat(unit="nats"),
        "accuracy": MetricFormat(higher_is_better=True, percent=True),
        "ece": MetricFormat(percent=True),
        "nll": MetricFormat(unit="nats"),
        "brier": MetricFormat(),
    }

    def loss(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        require_labels(prediction, y)
        return masked_mean(F.cross_entropy(prediction, y, reduction="none"), mask)

    def metrics(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        require_labels(prediction, y)
        return {"accuracy": masked_mean((prediction.argmax(-1) == y).to(prediction.dtype), mask)}

    def totals(self, prediction: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Per bin of confidence, (b/15, (b+1)/15]: rows, sum of their confidences, right ones; float64 (15,)
        each.
        """
        confidence = prediction.double().softmax(-1).amax(-1)
        place = (confidence * CONFIDENCE_BINS).ceil() - 1
        inside = ((place[:, None] == torch.arange(CONFIDENCE_BINS, device=y.device)) & mask[:, None]).double()
        # On a grid, sums of millions of rows are exact in any order. A product, so that NaN does not vanish
        # from them.
        grid = torch.where(mask, (confidence * 2**32).round() / 2**32, 0.0)
        right = (prediction.argmax(-1) == y).double()
        logarithm = prediction.double().log_softmax(-1)
        true = y[:, None] == torch.arange(prediction.shape[-1], device=y.device)
        brier = (logarithm.exp() - true.double()).square().sum(-1)
        return {
            "count": inside.sum(0),
            "confidence": grid @ inside,
            "right": right @ inside,
            "nll": torch.where(mask, -logarithm.gather(-1, y[:, None])[:, 0], 0.0).sum(),
            "brier": torch.where(mask, brier, 0.0).sum(),
        }

    def summary(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of all rows of all tasks: expected calibration error (Guo et al. 2017, eq. 3), negative log
        likelihood of the answers in nats, Brier score (Brier 1950: squared error of the probabilities, summed
        over classes, 0…2).
        """
        rows = sums["count"].sum()
        return {
            "ece": (sums["right"] - sums["confidence"]).abs().sum() / rows,
            "nll": sums["nll"] / rows,
            "brier": sums["brier"] / rows,
        }

    def reliability(self, sums: dict[str, Tensor]) -> dict[str, list[float | None]]:
        """Per bin of confidence: rows, their mean confidence, and the share of right answers (None without
        rows).
        """
        count = sums["count"].tolist()
        means = {"confidence": sums["confidence"].tolist(), "accuracy": sums["right"].tolist()}
        return {
            "count": count,
            **{
                name: [total / rows if rows else None for total, rows in zip(totals, count, strict=True)]
                for name, totals in means.items()
            },
        }


class Regression:
    """Mean squared error, a true mean over rows and target dimensions. prediction and y: (n, D)."""

    primary = "mse"
    higher_is_better = False
    formats = {"mse": MetricFormat()}

    def loss(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return squared_error(prediction, y, mask)

    def metrics(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return {"mse": self.loss(prediction, y, mask)}


class Rating:
    """Squared error to train on; MAE and RMSE per task, in the rating's own unit. prediction and y: (n,
    1).
    """

    primary = "mae"
    higher_is_better = False
    formats = {"mae": MetricFormat(), "rmse": MetricFormat()}

    def loss(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        return squared_error(prediction, y, mask)

    def metrics(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        rmse = self.loss(prediction, y, mask).sqrt()
        return {"mae": masked_mean((prediction - y).abs().mean(-1), mask), "rmse": rmse}


class BinnedAUC(NamedTuple):
    """Area under the ROC curve of rows pooled over tasks, from two histograms of their scores; a part for
    objectives.

    low, high: range of the scores, divided into equally wide bins; scores beyond it fall into the outermost
    ones. Rows of one bin count as ties (half), so that the error is at most half the chance that two rows of
    different classes
    share a bin: spread the scores over the range, logits by a sigmoid for instance.
    """

    low: float = 0.0
    high: float = 1.0
    bins: int = 1000

    def totals(self, scores: Tensor, positive: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """scores, positive (bool) and mask: (n,). Rows per bin, float64 (bins,); all NaN for a score that
        is.
        """
        place = (
            ((scores.double() - self.low) / (self.high - self.low) * self.bins)
            .floor()
            .clamp(0, self.bins - 1)
        )
        inside = place[:, None] == torch.arange(self.bins, device=scores.device)
        lost = torch.where(mask & place.isnan(), place, 0.0).sum()  # 0, or NaN: such a row is in no bin
        sides = {"positives": positive & mask, "negatives": ~positive & mask}
        return {name: (inside & side[:, None]).sum(0) + lost for name, side in sides.items()}

    def summary(self, sums: dict[str, Tensor]) -> Tensor:
        """Chance that a positive row has a higher score than a negative one; NaN without rows of both
        kinds.
        """
        positives, negatives = sums["positives"], sums["negatives"]
        below = negatives.cumsum(0) - negatives / 2
        return (positives * below).sum() / (positives.sum() * negatives.sum())
