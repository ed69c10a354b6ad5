"""Every task as a point: what one method scored on it against what another did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.report.compare import Comparison, Pair
from metalearn.report.compare_text import between, signed, unit
from metalearn.report.style import BLUE, GREY, RED, save

MOST_PANELS = 6
LARGEST, SMALLEST, SINGLE = 420.0, 8.0, 12.0  # area of a point, in square points
MOST_LETTERS = 34  # of a label on an axis


def scatter(found: Comparison, path: Path) -> list[Pair]:
    """Write the PNG of at most six pairs, and return the pairs that it leaves out. found: paired."""
    drawn, left_out = found.pairs[:MOST_PANELS], found.pairs[MOST_PANELS:]
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.7 * columns, 5.0 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, pair in zip(axes, drawn, strict=False):
        _draw(axis, found, pair)
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    save(figure, path)
    return left_out


def _draw(axis: Axes, found: Comparison, pair: Pair) -> None:
    scale, form = found.form.scale, found.form
    x, y = pair.b.by_task * scale, pair.a.by_task * scale
    # Scores of few queries fall on few points: their number is the area, so that none lies under another.
    places, counts = np.unique(np.round(np.stack([x, y], 1), 6), axis=0, return_counts=True)
    several = counts.max() > 1
    area = (
        np.maximum(SMALLEST, LARGEST * counts / max(counts.max(), 12)) if several else SINGLE + 0.0 * counts
    )
    shade = 0.55 if several else 0.35
    axis.scatter(places[:, 0], places[:, 1], s=area, color=BLUE, alpha=shade, linewidths=0, zorder=2)
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = 0.06 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axis.plot(limits, limits, color=GREY, linewidth=1, zorder=1)
    axis.scatter([x.mean()], [y.mean()], marker="+", s=260, color=RED, linewidths=2.2, zorder=4)
    axis.set(xlim=limits, ylim=limits, aspect="equal")
    mark = f" ({form.unit})" if form.unit else ""
    axis.set_xlabel(f"{_short(pair.b.label)}: {found.metric}{mark}")
    axis.set_ylabel(f"{_short(pair.a.label)}: {found.metric}{mark}")
    _say_which_is_better(axis, found, pair)
    assert pair.paired is not None
    largest = f"area: tasks, {counts.max():,} at the largest" if several else "one point a task"
    axis.set_title(
        f"difference {signed(form, pair.difference)}{unit(form)}, 95% CI {between(form, pair.paired.t)}\n"
        f"{len(x):,} tasks ({largest}); + the two means",
        fontsize=8,
    )
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def _say_which_is_better(axis: Axes, found: Comparison, pair: Pair) -> None:
    """In the two corners beside the diagonal."""
    above, below = (pair.a, pair.b) if found.higher_is_better else (pair.b, pair.a)
    assert pair.paired is not None
    wins = {id(pair.a): pair.paired.wins, id(pair.b): pair.paired.losses}
    said: dict[str, Any] = {"fontsize": 8, "color": GREY, "transform": axis.transAxes, "zorder": 1}
    axis.text(0.02, 0.99, f"{_short(above.label)} better\n({wins[id(above)]:,} tasks)", va="top", **said)
    axis.text(
        0.99,
        0.02,
        f"{_short(below.label)} better\n({wins[id(below)]:,} tasks)",
        ha="right",
        va="bottom",
        **said,
    )


def _short(label: str) -> str:
    return label if len(label) <= MOST_LETTERS else f"{label[: MOST_LETTERS - 1]}…"
