"""Pictures of a few episodes, with predictions where there are any.

Images become a grid, one row per class: its supports, then its queries. Tasks that map one number to one
number become curves; anything else shows its targets by row. T tasks, S support rows, Q query rows, O
outputs, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from metalearn.report.style import BLUE, GREEN, GREY, RED, save

if TYPE_CHECKING:
    from metalearn.core import Examples, TaskBatch

Array = np.ndarray[Any, Any]
MAX_ROWS, MAX_COLUMNS = 10, 10  # classes, and queries of a class, that still fit a screen
CELL = 0.62  # inches
TITLE = 6.0  # columns that the longest title takes
ONE_COLUMN = 4  # tasks; more stand in two columns
GAP = 0.5  # of a column, between supports and queries


class Rows(NamedTuple):
    """The real rows of one side of one task. x: (n, …), or None where inputs are a mapping. y: (n,)."""

    x: Array | None
    y: Array
    predicted: Array | None


def episodes(
    path: Path,
    tasks: TaskBatch,
    predictions: Any = None,
    *,
    count: int = 3,
    numbers: Sequence[int] | None = None,
) -> Path:
    """Draw the first `count` tasks of a batch into one PNG and return its path.

    tasks: as `source.tasks` gives them, on any device. predictions: (T, Q, O) as `algorithm.predict` gives
    them for the queries, or None to show the data alone. numbers: what their titles call the tasks; 0, 1, …
    by default.
    """
    count = min(count, len(_array(tasks.support.y)))
    numbers = range(count) if numbers is None else numbers
    pairs = [(_rows(tasks.support, i, None), _rows(tasks.query, i, predictions)) for i in range(count)]
    if _is_image(pairs[0][0]):
        return _image_grids(path, pairs, numbers)
    columns = min(count, ONE_COLUMN)
    lines = ceil(count / columns)
    figure = Figure(figsize=(3.6 * columns, 3.3 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.axis("off")
    for number, axis, (support, query) in zip(numbers, axes[:count], pairs, strict=True):
        (_draw_function if _is_function(support) else _draw_targets)(axis, support, query)
        axis.set_title(f"task {number}", fontsize=9)
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    return save(figure, path)


def _array(values: Any) -> Array:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _rows(examples: Examples, task: int, predictions: Any) -> Rows:
    real = _array(examples.mask)[task].astype(bool)
    y = _array(examples.y)[task][real]
    predicted = None
    if predictions is not None:
        predicted = _array(predictions)[task][real]
        predicted = predicted.argmax(-1) if np.issubdtype(y.dtype, np.integer) else predicted.reshape(len(y))
    x = None if isinstance(examples.x, dict) else _array(examples.x)[task][real].astype(float)
    return Rows(x, y.reshape(len(y)), predicted)


def _is_image(rows: Rows) -> bool:
    return rows.x is not None and rows.x.ndim == 4


def _is_function(rows: Rows) -> bool:
    return rows.x is not None and rows.x.size == len(rows.x)


def _image_grids(path: Path, pairs: list[tuple[Rows, Rows]], numbers: Sequence[int]) -> Path:
    """One grid per task, all on the same grey scale, in two columns when they are many."""
    low = min(float(side.x.min()) for pair in pairs for side in pair if side.x is not None)
    high = max(float(side.x.max()) for pair in pairs for side in pair if side.x is not None)
    sizes = [_grid_size(*pair) for pair in pairs]
    width, height = max(TITLE, *(size[0] for size in sizes)), max(size[1] for size in sizes)
    columns = 1 if len(pairs) <= ONE_COLUMN else 2
    lines = ceil(len(pairs) / columns)
    figure = Figure(
        figsize=(CELL * (width + 1.1) * columns, (CELL * (height + 0.55) + 0.35) * lines),
        layout="constrained",
    )
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(pairs) :]:
        axis.axis("off")
    for number, axis, (support, query) in zip(numbers, axes[: len(pairs)], pairs, strict=True):
        _draw_grid(axis, support, query, (low, high))
        axis.set(xlim=(-1.0, width - 0.4), ylim=(height - 0.35, -0.85), aspect="equal")
        axis.axis("off")
        axis.set_title(_grid_title(number, support, query), fontsize=9, loc="left")
    return save(figure, path)


def _grid_size(support: Rows, query: Rows) -> tuple[float, int]:
    """Columns and rows that a task's grid takes, in cells."""
    classes = np.unique(support.y)
    columns = [
        min(int((rows.y == label).sum()), MAX_COLUMNS) for rows in (support, query) for label in classes
    ]
    half = len(columns) // 2
    return max(columns[:half]) + GAP + max(columns[half:], default=0), min(len(classes), MAX_ROWS)


def _grid_title(number: int, support: Rows, query: Rows) -> str:
    way = len(np.unique(support.y))
    hidden = f", the first {MAX_ROWS} shown" if way > MAX_ROWS else ""
    text = f"task {number}: {way} classes{hidden}"
    if query.predicted is not None:
        text += f"; {int((query.predicted == query.y).sum())} of {len(query.y)} queries right"
    return text


def _draw_grid(axis: Axes, support: Rows, query: Rows, limits: tuple[float, float]) -> None:
    classes = np.unique(support.y)[:MAX_ROWS]
    shots = max(min(int((support.y == label).sum()), MAX_COLUMNS) for label in classes)
    axis.text(-0.4, -0.55, "support", fontsize=8, color=GREY)
    axis.text(
        shots + GAP - 0.4,
        -0.55,
        "query" if query.predicted is None else "query, prediction below",
        fontsize=8,
        color=GREY,
    )
    for row, label in enumerate(classes):
        axis.text(-0.6, row, str(label), fontsize=9, ha="right", va="center")
        for column, index in enumerate(np.flatnonzero(support.y == label)[:MAX_COLUMNS]):
            _draw_image(axis, support, index, (column, row), limits)
        for column, index in enumerate(np.flatnonzero(query.y == label)[:MAX_COLUMNS]):
            _draw_image(axis, query, index, (shots + GAP + column, row), limits)


def _draw_image(
    axis: Axes, rows: Rows, index: int, place: tuple[float, float], limits: tuple[float, float]
) -> None:
    """One picture of 0.76 cells, framed and labelled if it was predicted: solid when right, dashed when
    wrong.
    """
    assert rows.x is not None
    x, y = place
    pixels_CHW = (rows.x[index] - limits[0]) / ((limits[1] - limits[0]) or 1.0)
    image = pixels_CHW.transpose(1, 2, 0) if len(pixels_CHW) == 3 else pixels_CHW[0]
    axis.imshow(
        image,
        cmap="gray",
        vmin=0,
        vmax=1,
        extent=(x - 0.4, x + 0.4, y + 0.4, y - 0.4),
        interpolation="nearest",
    )
    right = None if rows.predicted is None else bool(rows.predicted[index] == rows.y[index])
    colour = {None: GREY, True: GREEN, False: RED}[right]
    line: dict[str, Any] = {
        "linewidth": 0.5 if right is None else 1.8,
        "linestyle": "--" if right is False else "-",
    }
    axis.add_patch(Rectangle((x - 0.4, y - 0.4), 0.8, 0.8, fill=False, edgecolor=colour, **line))
    if rows.predicted is not None:
        axis.text(
            x,
            y + 0.52,
            f"{rows.predicted[index]} {'✓' if right else '✗'}",
            fontsize=7,
            color=colour,
            ha="center",
            va="center",
        )


def _draw_function(axis: Axes, support: Rows, query: Rows) -> None:
    assert support.x is not None
    assert query.x is not None
    # Points, not lines: what lies between the queries was not asked.
    axis.plot(
        support.x.ravel(),
        support.y,
        color=BLUE,
        linestyle="none",
        marker="^",
        markersize=6,
        label="support target",
    )
    axis.plot(
        query.x.ravel(), query.y, color=GREY, linestyle="none", marker="o", markersize=4, label="query target"
    )
    if query.predicted is not None:
        axis.plot(
            query.x.ravel(),
            query.predicted,
            color=RED,
            linestyle="none",
            marker="x",
            markersize=5,
            label="prediction",
        )
        axis.vlines(query.x.ravel(), query.y, query.predicted, color=RED, linewidth=0.7)
    axis.set(xlabel="input", ylabel="target")


def _draw_targets(axis: Axes, support: Rows, query: Rows) -> None:
    place = len(support.y) + np.arange(len(query.y))
    axis.plot(
        np.arange(len(support.y)),
        support.y,
        color=BLUE,
        linestyle="none",
        marker="^",
        markersize=6,
        label="support target",
    )
    axis.plot(place, query.y, color=GREY, linestyle="none", marker="o", markersize=5, label="query target")
    if query.predicted is not None:
        axis.plot(
            place, query.predicted, color=RED, linestyle="none", marker="x", markersize=6, label="prediction"
        )
        axis.vlines(place, query.y, query.predicted, color=RED, linewidth=0.7)
    axis.set(xlabel="row of the task", ylabel="target")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
