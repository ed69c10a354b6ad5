"""Pictures of a run: learning curves, the adaptation curve, example episodes with their predictions.

Pure functions of the files in a run folder; each returns the path of its PNG.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metalearn.report.episodes import episodes as episodes  # the third picture of a run, drawn from arrays
from metalearn.report.style import BLUE, GREY, RED, save, style
from metalearn.rundir.reader import Format, Line, format_of, read_metrics, read_results
from metalearn.rundir.reader import adaptation_curve as curve_of


def learning_curve(run_dir: Path) -> Path | None:
    """plots/learning_curve.png: loss and primary metric over outer steps, validation with its 95% interval.

    None when the run has no step to show (a method that does not train).
    """
    lines = read_metrics(run_dir)
    results = read_results(run_dir / "results.json")
    if results is not None and lines and lines[-1]["split"] == results["split"]:
        lines = lines[:-1]  # the final evaluation, which may be on val and is drawn from results.json
    names = [name for name in ("loss", _primary(lines, results)) if name]
    if not any(line["split"] == "train" for line in lines):
        return None
    figure = Figure(figsize=(7.8, 2.7 * len(names)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(names), 1, sharex=True))
    for axis, name in zip(axes, names, strict=True):
        _draw_curve(axis, lines, name, format_of(name, results))
    if results is not None and results["primary"] == names[-1]:
        _draw_test(axes[-1], results)
    for axis in axes:  # beside the curves, since a band may fill any corner of the axis
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes[-1].set_xlabel("outer steps")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_title(run_dir.resolve().name, fontsize=9)
    return save(figure, run_dir / "plots" / "learning_curve.png")


def heat_map(path: Path, axes: dict[str, list[int]], cells: list[dict[str, Any]]) -> Path:
    """The cells of an evaluation grid by colour and number; what was refused stays empty."""
    down, *second = axes
    rows, columns = axes[down], axes[second[0]] if second else [0]
    values = np.full((len(rows), len(columns)), np.nan)
    figure = Figure(figsize=(1.4 + 1.25 * len(columns), 1.2 + 0.6 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for number, cell in enumerate(cells):
        place = divmod(number, len(columns))
        if cell.get("mean") is not None:
            values[place] = cell["mean"] * cell["scale"]
    axis.imshow(values, aspect="auto", cmap="viridis")
    for number, cell in enumerate(cells):
        row, column = divmod(number, len(columns))
        text = cell.get("shown", "refused").replace(" ± ", "\n± ")
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        dark = bool(values[row, column] <= middle)  # False for what was refused
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color="w" if dark else "k")
    axis.set_yticks(range(len(rows)), map(str, rows))
    axis.set_ylabel(f"data.{down}")
    axis.set_xticks(range(len(columns)), map(str, columns) if second else [""])
    axis.set_xlabel(f"data.{second[0]}" if second else "")
    axis.set_title(next(cell["metric"] for cell in cells if "metric" in cell), fontsize=9)
    return save(figure, path)


def adaptation_curve(run_dir: Path) -> Path | None:
    """plots/adaptation_curve.png: the primary metric after k adaptation steps, with its 95% interval.

    None when results.json has no `<primary>_step_<k>`, as for methods that do not adapt in steps.
    """
    results = read_results(run_dir / "results.json")
    points = curve_of(results) if results else []
    if results is None or not points:
        return None
    # null becomes NaN
    steps, mean, ci95 = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    form = format_of(results["primary"], results)
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.errorbar(
        steps,
        mean * form.scale,
        yerr=ci95 * form.scale,
        color=BLUE,
        marker="o",
        markersize=4,
        capsize=3,
        linewidth=1.5,
    )
    trained = results["protocol"].get("train_adaptation_steps")
    if trained is not None:
        axis.axvline(trained, color=GREY, linestyle=":", linewidth=1, label=f"steps in training ({trained})")
        axis.legend(frameon=False, fontsize=8)
    style(axis, results["primary"], form.unit)
    axis.set_xlabel("adaptation steps")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(f"{results['split']}: mean ± 95% CI over {results['episodes']} tasks", fontsize=9)
    return save(figure, run_dir / "plots" / "adaptation_curve.png")


def _primary(lines: list[Line], results: dict[str, Any] | None) -> str | None:
    """Name of the metric to draw under the loss: that of results.json, before it exists that of
    validation.
    """
    if results is not None:
        return None if results["primary"] == "loss" else str(results["primary"])
    for line in lines:
        for name in line:
            if line["split"] == "val" and name.endswith("_ci95") and name != "loss_ci95":
                return name.removesuffix("_ci95")
    return None


def _draw_curve(axis: Axes, lines: list[Line], name: str, form: Format) -> None:
    for split, colour, marker in (("train", GREY, ""), ("val", BLUE, "o")):
        chosen = [line for line in lines if line["split"] == split and name in line]
        if not chosen:
            continue
        step = np.array([line["step"] for line in chosen])
        mean = np.array([line[name] for line in chosen], dtype=float) * form.scale
        axis.plot(step, mean, color=colour, marker=marker, markersize=4, linewidth=1.2, label=split)
        ci95 = np.array([line.get(f"{name}_ci95", np.nan) for line in chosen], dtype=float) * form.scale
        if np.isfinite(ci95).any():
            axis.fill_between(
                step, mean - ci95, mean + ci95, color=colour, alpha=0.25, linewidth=0, label=f"{split} 95% CI"
            )
    style(axis, name, form.unit)


def _draw_test(axis: Axes, results: dict[str, Any]) -> None:
    name = results["primary"]
    value = results["metrics"][name]
    form = format_of(name, results)
    label = f"{results['split']} {form.shown(value['mean'], value['ci95'])}"
    style: dict[str, Any] = {
        "color": RED,
        "marker": "D",
        "markersize": 5,
        "capsize": 3,
        "linestyle": "none",
        "zorder": 3,
    }
    # A mean that is not finite is null in the file; as NaN it stays in the legend and is not drawn.
    mean, ci95 = (np.array([value[key]], dtype=float) * form.scale for key in ("mean", "ci95"))
    axis.errorbar([results["step"]], mean, yerr=ci95, label=label, **style)
