"""The curves of cost against tasks and steps: their two verdicts, and a picture that can be drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from metalearn.bench import measure, scaling

from .tiny import FAST, tiny


def test_the_largest_rise_is_that_from_fewer_to_more_tasks() -> None:
    assert scaling.rise({4: 10.0, 8: 8.0, 16: 9.0}) == pytest.approx(12.5)
    assert scaling.rise({16: 8.0, 4: 10.0, 8: 9.0}) == pytest.approx(-10.0)


def test_a_straight_line_is_found_and_a_bend_is_seen() -> None:
    straight = scaling.line({1: 5.0, 2: 8.0, 4: 14.0})
    assert straight["ms_per_step"] == pytest.approx(3.0)
    assert straight["ms_besides"] == pytest.approx(2.0)
    assert straight["largest_deviation_percent"] == pytest.approx(0.0, abs=1e-9)
    assert scaling.line({1: 5.0, 2: 8.0, 4: 28.0})["largest_deviation_percent"] > 10


def test_curves_of_a_real_workload_have_every_point_and_make_a_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    monkeypatch.setattr(scaling, "TASKS", (1, 2))
    monkeypatch.setattr(scaling, "STEPS", (1, 2, 3))
    found = scaling.curves(tiny("sinusoid", tmp_path), FAST)
    assert {plan: list(points) for plan, points in found["tasks"].items()} == {
        "loop": [1, 2],
        "vmap chunk 2": [1, 2],
    }
    assert {plan: list(points) for plan, points in found["steps"].items()} == {
        "loop": [1, 2, 3],
        "vmap chunk 2": [1, 2, 3],
    }
    assert all(
        ms > 0
        for curve in (found["tasks"], found["steps"])
        for points in curve.values()
        for ms in points.values()
    )
    lines = scaling.table(found).splitlines()
    assert lines[0] == "scaling: sinusoid, ms per task"
    assert lines[1].split() == ["tasks", "1", "2"]
    assert "largest rise" in lines[2]
    assert "ms a step" in lines[-1]
    path = scaling.plot(found, tmp_path / "new" / "curves.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
