"""Metrics that are pooled over rows and tasks, against hand-made numbers and exact computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metalearn.objectives import BinnedAUC, Classification


def logits(confidences: list[float]) -> Tensor:
    """Two classes; class 0 is chosen with these confidences."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=-1)


def everything(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def ece(*tasks: tuple[Tensor, Tensor, Tensor]) -> float:
    totals = [Classification().totals(*task) for task in tasks]
    return (
        Classification()
        .summary({name: sum(part[name] for part in totals) for name in totals[0]})["ece"]
        .item()
    )


def test_calibration_error_is_that_of_the_rows_of_all_tasks_together() -> None:
    # Confidences 0.9 and 0.92 share a bin, (13/15, 14/15]; 0.7 is alone. Right: one of the two, and the one.
    first = (logits([0.9, 0.7]), torch.tensor([0, 0]), everything(2))
    second = (logits([0.92]), torch.tensor([1]), everything(1))
    assert ece(first, second) == pytest.approx((abs(1.82 - 1) + abs(0.7 - 1)) / 3, abs=1e-9)
    apart = [ece(first), ece(second)]
    assert ece(first, second) != pytest.approx(sum(apart) / 2, abs=0.05), "it must be no mean over tasks"


def test_bins_of_confidence_are_closed_above() -> None:
    # confidences 1/3 = 5/15, and 1
    prediction = torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0]], dtype=torch.float64)
    count = Classification().totals(prediction, torch.tensor([0, 0]), everything(2))["count"]
    assert count.nonzero().flatten().tolist() == [4, 14]


def test_padded_rows_change_no_total() -> None:
    prediction, y = (
        torch.randn(6, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 3, 0, 0]),
    )
    padded = torch.cat([prediction[:4], torch.full((2, 4), 1e3)])
    mask = torch.tensor([True] * 4 + [False] * 2)
    alone = Classification().totals(prediction[:4], y[:4], everything(4))
    assert all(
        torch.equal(values, alone[name]) for name, values in Classification().totals(padded, y, mask).items()
    )


def test_a_prediction_that_is_not_a_number_has_no_calibration() -> None:
    assert math.isnan(
        ece((torch.tensor([[torch.nan, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]), everything(2)))
    )


def test_sums_of_confidences_do_not_depend_on_their_order() -> None:
    generator = torch.Generator().manual_seed(1)
    prediction, y = torch.randn(2000, 5, generator=generator), torch.zeros(2000, dtype=torch.int64)
    order = torch.randperm(2000, generator=generator)
    whole, mixed = (
        Classification().totals(prediction[rows], y, everything(2000)) for rows in (torch.arange(2000), order)
    )
    assert torch.equal(whole["confidence"], mixed["confidence"])


def binned(scores: Tensor, positive: Tensor, tasks: int = 20) -> float:
    """The AUC of the rows, in so many tasks."""
    auc = BinnedAUC()
    parts = [
        auc.totals(s, p, everything(len(s)))
        for s, p in zip(scores.chunk(tasks), positive.chunk(tasks), strict=True)
    ]
    return auc.summary({name: sum(part[name] for part in parts) for name in parts[0]}).item()


def exact(scores: Tensor, positive: Tensor) -> float:
    """Mann and Whitney's statistic from mid-ranks; ties count half."""
    _, place, count = scores.unique(return_inverse=True, return_counts=True)
    rank = (count.cumsum(0) - (count.double() - 1) / 2)[place]  # from 1
    positives, negatives = positive.double().sum(), (~positive).double().sum()
    wins = rank[positive].sum() - positives * (positives + 1) / 2
    return (wins / (positives * negatives)).item()


def cases() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    positive = torch.rand(6000, generator=generator) < 0.3
    wide = torch.randn(6000, generator=generator, dtype=torch.float64) + positive
    return [
        (wide.sigmoid(), positive),
        ((3 * wide).sigmoid(), positive),
        ((wide.sigmoid() * 20).round() / 20, positive),
    ]


@pytest.mark.parametrize("case", range(3))
def test_pooled_auc_is_within_a_thousandth_of_the_exact_one(case: int) -> None:
    scores, positive = cases()[case]
    assert 0.6 < exact(scores, positive) < 0.9
    assert binned(scores, positive) == pytest.approx(exact(scores, positive), abs=1e-3)


@pytest.mark.parametrize("case", range(3))
def test_pooled_auc_is_within_a_thousandth_of_scikit_learn(case: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, positive = cases()[case]
    assert exact(scores, positive) == pytest.approx(
        metrics.roc_auc_score(positive.numpy(), scores.numpy()), abs=1e-12
    )
    assert binned(scores, positive) == pytest.approx(
        metrics.roc_auc_score(positive.numpy(), scores.numpy()), abs=1e-3
    )


def test_auc_of_perfect_scores_is_one_and_of_equal_ones_a_half() -> None:
    positive = torch.tensor([True, True, False, False])
    assert binned(torch.tensor([0.9, 0.8, 0.2, 2e9]).clamp(0, 0.5), positive, tasks=1) == 0.75
    assert binned(torch.tensor([0.9, 0.8, 0.2, 0.1]), positive, tasks=2) == 1.0
    assert binned(torch.full((4,), 0.3), positive, tasks=1) == 0.5


def test_auc_is_undefined_without_both_kinds_of_rows_or_with_a_score_that_is_not_a_number() -> None:
    assert math.isnan(binned(torch.rand(4), everything(4), tasks=2))
    assert math.isnan(
        binned(torch.tensor([0.9, torch.nan, 0.2, 0.1]), torch.tensor([True, False, True, False]), tasks=2)
    )
