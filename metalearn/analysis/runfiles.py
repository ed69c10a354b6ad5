"""Reading what a run left behind, for tables and plots. Nothing here writes, and nothing needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

Line = dict[str, Any]  # one line of metrics.jsonl
TIMED = ("data", "step", "eval", "save")


def read_metrics(run_dir: Path) -> list[Line]:
    """The lines of metrics.jsonl in order; empty before the first one was written."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    complete = path.read_text(encoding="utf-8").rpartition("\n")[0]  # a run that is still going may be inside a line
    return [json.loads(line) for line in complete.splitlines() if line.strip()]


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, None when the file is absent."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, None when the file is absent."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None


def wall_seconds(lines: list[Line]) -> dict[str, float]:
    """Seconds spent on each of data, step, eval and save, summed over a run's lines and so over its restarts."""
    return {part: sum(float(line.get(f"time_{part}", 0.0)) for line in lines) for part in TIMED}


def is_fraction(metric: str) -> bool:
    """Whether a metric is a fraction in files and percent on screen."""
    return metric.startswith("accuracy")


def shown(metric: str, mean: float | None, ci95: float | None = None) -> str:
    """A number as people read it: '96.31 ± 0.42 %' for accuracies, four digits otherwise.

    mean: None stands for NaN or infinity, which JSON does not have.
    """
    if mean is None:
        return "not finite"
    scale, digits, unit = (100.0, 2, " %") if is_fraction(metric) else (1.0, 4, "")
    text = f"{mean * scale:.{digits}f}"
    return f"{text}{unit}" if ci95 is None else f"{text} ± {ci95 * scale:.{digits}f}{unit}"


def adaptation_curve(results: dict[str, Any]) -> list[tuple[int, float, float]]:
    """(step, mean, ci95) of the primary metric after each reported number of adaptation steps, in order."""
    stem = f"{results['primary']}_step_"
    found = [(int(name.removeprefix(stem)), value) for name, value in results["metrics"].items() if name.startswith(stem)]
    return [(step, value["mean"], value["ci95"]) for step, value in sorted(found, key=lambda pair: pair[0])]
