"""One checkpoint judged under every combination of sizes: a table and a heat map."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metalearn.config.schema import hint
from metalearn.engine.results import protocol_name
from metalearn.errors import ConfigError
from metalearn.files import replace_file
from metalearn.report.tables import grid as table
from metalearn.rundir.checkpoints import SaveError
from metalearn.rundir.reader import format_of, read_results, shown

log = logging.getLogger(__name__)

SIZES = ("way", "shot", "query_shot")
Cell = dict[str, Any]  # sizes, and the result, or the reason why there is none


def evaluate_grid(
    run_dir: Path,
    overrides: list[str],
    axes: Any,
    judge: Callable[[list[str]], tuple[int, Path]],
) -> int:
    """Judge every cell; RUN_DIR/evals/grid_<protocol>/ then holds grid.json and grid.png. The exit code.

    axes: {key of data: values}, one or two of them. judge: one evaluation with these words. ConfigError if
    every cell is refused.
    """
    axes = checked(axes)
    words = [word for word in overrides if word.partition("=")[0].strip() != "eval.grid"]
    if any(word.startswith("eval.tasks=") for word in words):
        raise ConfigError(
            "eval.grid beside eval.tasks, whose tasks have the sizes that the file lists; leave one out"
        )
    cells: list[Cell] = []
    for values in itertools.product(*axes.values()):
        sizes = dict(zip(axes, values, strict=True))
        log.info("judging " + " ".join(f"data.{key}={value}" for key, value in sizes.items()))
        try:
            code, folder = judge([*words, *(f"data.{key}={value}" for key, value in sizes.items())])
        except ConfigError as error:
            if isinstance(error.__cause__, SaveError):
                raise
            cells.append({**sizes, "reason": str(error)})
            continue
        if code:
            return code
        cells.append({**sizes, "folder": str(folder.relative_to(run_dir)), **result_of(folder)})
    refused = [f"data.{_name(cell, axes)}: {cell['reason']}" for cell in cells if "reason" in cell]
    if len(refused) == len(cells):
        raise ConfigError(refused)
    folder = run_dir / "evals" / f"grid_{protocol_name('cells', overrides)}"
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"axes": axes, "cells": cells}
    replace_file(folder / "grid.json", (json.dumps(tree, indent=1) + "\n").encode())
    from metalearn.report.plots import heat_map

    heat_map(folder / "grid.png", axes, cells)
    log.info("\n".join([shown_grid(axes, cells), *refused, f"written: {folder}"]))
    return 0


def checked(axes: Any) -> dict[str, list[int]]:
    """ConfigError unless it is one or two keys with lists of whole numbers."""
    good = isinstance(axes, Mapping) and 1 <= len(axes) <= 2
    odd = next((str(key) for key in axes if key not in SIZES), None) if good else None
    if odd is not None:
        known = f"choose one or two of {', '.join(SIZES)}{hint(odd, SIZES)}"
        raise ConfigError(f"eval.grid has no {odd}; {known}")
    for values in axes.values() if good else ():
        good = good and isinstance(values, list) and bool(values)
        good = good and all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    if not good:
        raise ConfigError(
            f"eval.grid={axes}; expected one or two sizes of data with their values, as in "
            "'eval.grid={way: [5,20], shot: [1,5]}'"
        )
    return {str(key): list(values) for key, values in axes.items()}


def result_of(folder: Path) -> Cell:
    results = read_results(folder / "results.json")
    assert results is not None
    primary = results["primary"]
    value = results["metrics"][primary]
    return {
        "metric": primary,
        "mean": value["mean"],
        "ci95": value["ci95"],
        "episodes": results["episodes"],
        "scale": format_of(primary, results).scale,
        "shown": shown(primary, results),
    }


def shown_grid(axes: dict[str, list[int]], cells: list[Cell]) -> str:
    """The cells as people read them: the first axis down, the second across."""
    down, *across = axes
    rows = [[f"data.{down}", *(f"{key}={value}" for key in across for value in axes[key])]]
    if not across:
        rows[0].append("mean ± 95% CI")
    for value in axes[down]:
        line = [cell for cell in cells if cell[down] == value]
        rows.append([str(value), *(cell.get("shown", "refused") for cell in line)])
    metric = next(cell["metric"] for cell in cells if "metric" in cell)
    counts = sorted({cell["episodes"] for cell in cells if "episodes" in cell})
    episodes = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
    return f"{metric}, mean ± 95% CI over {episodes} tasks each\n{table(rows, right=range(1, len(rows[0])))}"


def _name(cell: Cell, axes: Mapping[str, Any]) -> str:
    return " data.".join(f"{key}={cell[key]}" for key in axes)
