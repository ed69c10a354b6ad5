"""The figures that `metalearn ls experiment` shows of a recipe."""

from __future__ import annotations

from typing import Any

import pytest

from metalearn.cli.ls import figures

ABOUT = {"figures": [{"name": "adapted", "unit": "mae", "published": 0.5}]}


def record(mean: float) -> dict[str, Any]:
    return {"figures": {"adapted": {"mean": mean, "ci95": 0.02}}}


@pytest.mark.parametrize(
    ("measured", "shown"),
    [
        ({"smoke": {"losses": {}}, "paper": record(0.4), "cpu": record(0.48)}, "0.48 ± 0.02 mae"),
        ({"cpu": {"figures": {}}, "paper": record(0.4)}, "0.4 ± 0.02 mae (paper)"),
        ({}, ""),
    ],
)
def test_the_figure_of_the_usual_tier_is_shown_with_its_unit_or_else_the_tier_is_named(
    measured: dict[str, Any], shown: str
) -> None:
    assert figures({**ABOUT, "measured": measured}) == ("0.5 mae adapted", shown)
