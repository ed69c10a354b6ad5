from __future__ import annotations

import json
from math import ceil
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor

from metalearn.core import Examples, Task
from metalearn.report import plots
from metalearn.report.episodes import episodes


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) in pixels; fails on anything that is no PNG."""
    height, width = imread(path).shape[:2]
    return width, height


def rows(x: Tensor | dict[str, Tensor], y: Tensor) -> Examples:
    return Examples(x, y, torch.ones(y.shape[:2], dtype=torch.bool))


def image_tasks(num_tasks: int = 2, way: int = 5, query_shot: int = 3) -> Task:
    y_S, y_Q = (
        torch.arange(way).repeat(num_tasks, 1),
        torch.arange(way).repeat_interleave(query_shot).repeat(num_tasks, 1),
    )
    x_S, x_Q = torch.rand(num_tasks, way, 1, 8, 8), torch.rand(num_tasks, way * query_shot, 1, 8, 8)
    return Task(rows(x_S, y_S), rows(x_Q, y_Q), torch.zeros(num_tasks, dtype=torch.int64))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every word written onto an axis."""
    written: list[str] = []
    original = Axes.text

    def record(self: Axes, x: float, y: float, s: str, **kwargs: object) -> object:
        written.append(s)
        return original(self, x, y, s, **kwargs)

    monkeypatch.setattr(Axes, "text", record)
    return written


def test_learning_curve_is_drawn_from_the_run_folder_alone(run_dir: Path) -> None:
    path = plots.learning_curve(run_dir)
    assert path == run_dir / "plots" / "learning_curve.png"
    assert min(size_of(path)) > 600


def test_learning_curve_needs_no_result_yet(run_dir: Path) -> None:
    (run_dir / "results.json").unlink()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 210, "spl')  # a line that is still being written
    assert plots.learning_curve(run_dir) is not None


def figure_of(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved from now on."""
    saved: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kw: (saved.append(self), original(self, *args, **kw))[1]
    )
    return saved


def test_a_short_run_has_whole_steps_on_its_axis(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir / "results.json").unlink()
    lines = [{"step": step, "split": "train", "loss": 1 / step} for step in (1, 2, 3)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = figure_of(monkeypatch)
    plots.learning_curve(run_dir)
    ticks = [label.get_text() for label in figures[0].axes[-1].get_xticklabels()]
    assert ticks
    assert not [tick for tick in ticks if "." in tick]


def test_the_legend_lies_beside_the_curves(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = figure_of(monkeypatch)
    plots.learning_curve(run_dir)
    for axis in figures[0].axes:
        legend = axis.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()][:2] == ["train", "val"]
        assert not legend.get_window_extent().overlaps(axis.bbox)
        # pixels: text is laid out at another resolution
        assert legend.get_window_extent().x1 <= figures[0].bbox.x1 + 5


@pytest.mark.parametrize("num_tasks", [5, 12])
def test_many_tasks_stand_in_two_columns(tmp_path: Path, num_tasks: int) -> None:
    tasks = image_tasks(num_tasks, way=20, query_shot=5)
    width, height = size_of(episodes(tmp_path / "many.png", tasks, count=num_tasks))
    one, alone = size_of(episodes(tmp_path / "four.png", tasks, count=4))
    assert width > 1.8 * one
    assert height == pytest.approx(alone / 4 * ceil(num_tasks / 2), rel=0.02)


def test_no_learning_curve_for_a_method_that_does_not_train(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_text('{"step": 0, "split": "test", "loss": 1.0}\n')
    assert plots.learning_curve(run_dir) is None


def test_adaptation_curve_takes_its_points_in_order_of_steps(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[float]] = []
    original = Axes.errorbar
    monkeypatch.setattr(
        Axes,
        "errorbar",
        lambda self, x, y, **kw: (drawn.append([list(x), list(y)]), original(self, x, y, **kw))[1],
    )
    assert plots.adaptation_curve(run_dir) == run_dir / "plots" / "adaptation_curve.png"
    assert drawn == [[[0, 1, 2, 10], pytest.approx([20.0, 95.0, 96.0, 97.0])]]


def test_axes_have_the_unit_that_the_result_says(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    results["formats"] = {"accuracy": {"percent": False, "higher_is_better": True, "unit": "points"}}
    figures = figure_of(monkeypatch)
    for formats in ({}, results["formats"]):
        (run_dir / "results.json").write_text(json.dumps({**results, "formats": formats}))
        plots.learning_curve(run_dir)
        plots.adaptation_curve(run_dir)
    labels = [figure.axes[-1].get_ylabel() for figure in figures]
    assert labels == ["accuracy (%)"] * 2 + ["accuracy (points)"] * 2
    assert figures[2].axes[-1].get_ylim()[1] < 2 < figures[0].axes[-1].get_ylim()[1]


def test_no_adaptation_curve_without_steps(run_dir: Path) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    results["metrics"] = {"accuracy": results["metrics"]["accuracy"]}
    (run_dir / "results.json").write_text(json.dumps(results))
    assert plots.adaptation_curve(run_dir) is None


def test_predictions_are_marked_right_or_wrong_in_words_too(tmp_path: Path, texts: list[str]) -> None:
    tasks = image_tasks(num_tasks=1)
    logits_TQO = torch.nn.functional.one_hot(tasks.query.y, 5).float()
    logits_TQO[0, 0] = torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0])  # a query of class 0 taken for class 2
    episodes(tmp_path / "episodes.png", tasks, logits_TQO)
    marks = [text for text in texts if text[-1] in "✓✗"]
    assert sorted(marks) == sorted(
        ["2 ✗"] + ["0 ✓"] * 2 + [f"{label} ✓" for label in (1, 2, 3, 4) for _ in range(3)]
    )


def test_padded_rows_are_not_drawn(tmp_path: Path, texts: list[str]) -> None:
    tasks = image_tasks(num_tasks=1)
    tasks.query.mask[0, 5:] = False
    episodes(tmp_path / "episodes.png", tasks, torch.rand(1, 15, 5))
    assert sum(text[-1] in "✓✗" for text in texts) == 5


@pytest.mark.parametrize("kind", ["images", "rgb", "function", "ratings"])
@pytest.mark.parametrize("predicted", [False, True])
def test_every_kind_of_task_can_be_drawn(tmp_path: Path, kind: str, predicted: bool) -> None:
    tasks = image_tasks()
    prediction = torch.rand(2, 15, 5)
    if kind == "rgb":
        tasks = tasks._replace(
            support=tasks.support._replace(x=torch.rand(2, 5, 3, 8, 8)),
            query=tasks.query._replace(x=torch.rand(2, 15, 3, 8, 8)),
        )
    elif kind != "images":
        x, y = torch.rand(2, 10, 1), torch.rand(2, 10, 1)
        inputs: Tensor | dict[str, Tensor] = (
            x if kind == "function" else {"item": torch.zeros(2, 10, dtype=torch.int64)}
        )
        tasks, prediction = Task(rows(inputs, y), rows(inputs, y), tasks.key), y + 0.1
    path = episodes(tmp_path / "new" / "episodes.png", tasks, prediction if predicted else None)
    assert min(size_of(path)) > 200


def test_a_final_evaluation_on_val_is_no_point_of_the_curve(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = json.loads((run_dir / "results.json").read_text()) | {"split": "val"}
    (run_dir / "results.json").write_text(json.dumps(results))
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 150, "split": "val", "loss": 0.1, "accuracy": 0.96, "accuracy_ci95": 0.004}\n')
    steps: list[list[float]] = []
    original = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, **kw: (steps.append(list(x)), original(self, x, y, **kw))[1]
    )
    plots.learning_curve(run_dir)
    assert [50, 100, 150, 200] in steps
    assert all(curve == sorted(curve) for curve in steps)


def test_a_result_that_is_not_finite_is_drawn_and_told(run_dir: Path) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    for name in results["metrics"]:
        if name == results["primary"] or "_step_" in name:
            results["metrics"][name] = {"mean": None, "ci95": None, "std": None}
    (run_dir / "results.json").write_text(json.dumps(results))
    assert plots.learning_curve(run_dir) is not None
    assert plots.adaptation_curve(run_dir) is not None
