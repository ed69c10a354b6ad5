"""Figures of many runs over each other, as SVG that lies within a page and takes its ink from it.

Colours are Okabe and Ito's; since they repeat, a dash pattern tells further rows apart. The words of a legend
are the page's, so that no text of a user is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metalearn.report.leaderboard import Table
from metalearn.report.rows import Row
from metalearn.report.style import style
from metalearn.rundir.reader import adaptation_curve

Array = np.ndarray[Any, Any]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2))
MOST_SERIES = len(COLOURS) * 2  # rows in colour; the others are grey
REST = "#8a8a8a"
MOST_POINTS = 200  # of one curve; more than a page has pixels for
INK, FAINT = "#010101", "#020202"  # become the page's own
FORMAT: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
}


class Series(NamedTuple):
    """How a row is drawn. dash: lengths of ink and gap, empty for a whole line."""

    number: int
    label: str
    colour: str
    dash: tuple[float, ...]

    @property
    def dash_words(self) -> str:
        """For the line of a legend."""
        return " ".join(str(2 * length) for length in self.dash) or "none"


class Drawing(NamedTuple):
    """svg: the drawing, to stand in a page as it is."""

    svg: str
    caption: str


class Curve(NamedTuple):
    """Points with a band around them, NaN where there is none."""

    x: Array
    y: Array
    low: Array
    high: Array


def learning(table: Table, name: str) -> Drawing | None:
    """The primary metric on validation tasks over outer steps; None where no run was validated."""
    caption = "Validation while training. Bands are 95% intervals over tasks"
    caption += ", or the range over seeds." if any(len(row.members) > 1 for row in table.rows) else "."
    return _drawn(table, name, caption, "outer steps", lambda row: _validation(row, table.primary))


def adaptation(table: Table, name: str) -> Drawing | None:
    """The primary metric after k steps of adaptation; None where no method adapts in steps."""
    caption = f"On {table.results['split']} tasks after each number of adaptation steps, with 95% intervals."
    return _drawn(table, name, caption, "adaptation steps", _adaptation, marker="o")


def reliability(table: Table, name: str) -> Drawing | None:
    """Share of right answers over confidence, in bins; None where no result has them."""
    caption = "Calibration: accuracy over confidence, pooled over queries. The grey diagonal is perfect."

    def guide(axis: Axes) -> None:
        axis.plot([0, 100], [0, 100], color=REST, linewidth=0.8, zorder=0)
        axis.set(xlim=(0, 100), ylim=(0, 100))

    return _drawn(table, name, caption, "confidence (%)", _reliability, marker="o", guide=guide)


def _drawn(
    table: Table,
    name: str,
    caption: str,
    x_label: str,
    curve_of: Callable[[Row], Curve | None],
    *,
    marker: str = "",
    guide: Callable[[Axes], None] | None = None,
) -> Drawing | None:
    styles = series_of(table)
    drawn = [(one, curve) for one, row in zip(styles, table.rows, strict=True) if (curve := curve_of(row))]
    if not drawn:
        return None
    with matplotlib.rc_context({**FORMAT, "svg.hashsalt": name}):
        figure = Figure(figsize=(7.6, 3.6), layout="constrained")
        axis = figure.subplots()
        for one, curve in reversed(drawn):  # the best on top
            _draw_curve(axis, one, curve, marker)
        form = table.rows[0].form
        style(axis, *(("accuracy", "%") if guide else (literal(table.primary), literal(form.unit))))
        axis.set_xlabel(x_label)
        if guide is not None:
            guide(axis)
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        return Drawing(_svg(figure), caption)


def series_of(table: Table) -> list[Series]:
    """How each row is drawn, the same in every figure of its table."""
    looks = [(colour, dash) for dash in DASHES for colour in COLOURS]
    looks += [(REST, ())] * (len(table.rows) - MOST_SERIES)
    return [
        Series(number, row.label, *look)
        for number, (row, look) in enumerate(zip(table.rows, looks, strict=False), 1)
    ]


def literal(text: str) -> str:
    """A text of a file, in which a dollar would begin a formula."""
    return "".join(letter if letter.isprintable() else "?" for letter in text).replace("$", r"\$")


def _draw_curve(axis: Axes, one: Series, curve: Curve, marker: str) -> None:
    band = one.number <= MOST_SERIES
    line: dict[str, Any] = {"color": one.colour, "linewidth": 1.6 if band else 0.7}
    if one.dash:
        line["dashes"] = one.dash
    axis.plot(curve.x, curve.y, marker=marker, markersize=3.5, **line)
    if band and np.isfinite(curve.low).any():
        axis.fill_between(curve.x, curve.low, curve.high, color=one.colour, alpha=0.15, linewidth=0)


def _validation(row: Row, primary: str) -> Curve | None:
    """The mean over seeds at the steps that all of them have."""
    found = []
    for member in row.members:
        if member.is_evaluation:
            return None  # its run has a row of its own
        lines = [line for line in member.lines if line["split"] == "val" and line.get(primary) is not None]
        if member.results["split"] == "val" and lines:
            lines = lines[:-1]  # the final evaluation
        found.append({line["step"]: (line[primary], line.get(f"{primary}_ci95")) for line in lines})
    steps = sorted(set.intersection(*map(set, found)))
    if not steps:
        return None
    steps = steps[:: -(-len(steps) // MOST_POINTS)]
    means = np.array([[values[step][0] for step in steps] for values in found], dtype=float)
    middle = means.mean(0)
    if len(found) > 1:
        low, high = means.min(0), means.max(0)
    else:
        half = np.array([found[0][step][1] for step in steps], dtype=float)  # null becomes NaN
        low, high = middle - half, middle + half
    scale = row.form.scale
    return Curve(np.array(steps), middle * scale, low * scale, high * scale)


def _adaptation(row: Row) -> Curve | None:
    curves = [adaptation_curve(member.results) for member in row.members]
    if not curves[0] or any(len(curve) != len(curves[0]) for curve in curves):
        return None
    points = np.array(curves, dtype=float).mean(0) * [1, row.form.scale, row.form.scale]  # null becomes NaN
    steps, middle, half = points.T
    return Curve(steps, middle, middle - half, middle + half)


def _reliability(row: Row) -> Curve | None:
    """Bins of all seeds together; those without a query are left out."""
    try:
        count, confidence, accuracy = (
            np.array([member.results["reliability"][name] for member in row.members], dtype=float)
            for name in ("count", "confidence", "accuracy")
        )
        total = count.sum(0)
    except (LookupError, TypeError, ValueError):  # an older result has none
        return None
    met = total > 0
    if not count.shape == confidence.shape == accuracy.shape or not met.any():
        return None
    x, y = (
        (np.nan_to_num(values) * count).sum(0)[met] / total[met] * 100 for values in (confidence, accuracy)
    )
    nothing = np.full(len(x), np.nan)
    return Curve(x, y, nothing, nothing)


def _svg(figure: Figure) -> str:
    """The drawing as an element of a page: no header, no fixed size, ink of the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[\w.]*_\d+"', "", text)  # which another figure of the page has, too
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 role="img"', text, count=1)
    return text.replace(INK, "currentColor").replace(FAINT, "currentColor")
