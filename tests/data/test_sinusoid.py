"""Sinusoids follow the published ranges, and have no classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metalearn.data.sinusoid import Sinusoid
from metalearn.errors import ConfigError
from tests.shipped import built

CPU = torch.device("cpu")


def test_sinusoids_follow_the_published_ranges() -> None:
    task = built(Sinusoid, device=CPU, shot=40, query_shot=200).tasks("train", seed=0, first=0, count=5000)
    assert isinstance(task.query.x, Tensor)
    assert -5 <= task.query.x.min() < -4.99
    assert 4.99 < task.query.x.max() < 5
    # E[A²]/2 · E[1 - cos(2x - 2φ)] over the ranges is 4.25: the error of predicting zero.
    assert abs(float(task.query.y.square().mean()) - 4.25) < 0.15
    peak = task.query.y.abs().amax((1, 2))
    assert 0.09 < peak.min() < 0.2
    assert 4.9 < peak.max() <= 5


def test_support_and_query_lie_on_one_sinusoid() -> None:
    task = built(Sinusoid, device=CPU).tasks("test", seed=0, first=0, count=20)
    rows = [
        (side.x.double(), side.y.double())
        for side in (task.support, task.query)
        if isinstance(side.x, Tensor)
    ]
    basis = [torch.cat([x.sin(), x.cos()], -1) for x, _ in rows]
    fit = torch.linalg.lstsq(basis[0], rows[0][1]).solution
    assert (basis[1] @ fit - rows[1][1]).abs().max() < 1e-4
    phase = torch.atan2(-fit[:, 1, 0], fit[:, 0, 0])
    assert -1e-4 < phase.min()
    assert phase.max() < math.pi + 1e-4


def test_sinusoid_refuses_ranges_that_are_none() -> None:
    with pytest.raises(ConfigError) as caught:
        built(Sinusoid, device=CPU, amplitude=[5, 1], phase=[1])
    assert caught.value.problems == [
        "data.amplitude=[5, 1]; expected [low, high] with low <= high",
        "data.phase=[1]; expected [low, high] with low <= high",
    ]


def test_sources_without_classes_have_no_flat_minibatches() -> None:
    with pytest.raises(ValueError, match="data=sinusoid has no labelled classes"):
        built(Sinusoid, device=CPU).examples(seed=0, first=0, count=1)
