"""Run folders that hold a configuration and a result, as far as comparing needs them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

PROTOCOL = {"data": "glyphs", "split": "test", "way": 5, "shot": 1, "query_shot": 1, "transductive": True}
OWN = ["adaptation_steps", "checkpoint", "order"]
FORMATS = {
    "accuracy": {"higher_is_better": True, "percent": True, "unit": ""},
    "accuracy_inductive": {"higher_is_better": True, "percent": True, "unit": ""},
    "mse": {"higher_is_better": False, "percent": False, "unit": ""},
}


def names_of(count: int, first: int = 0) -> list[str]:
    return [f"task{number:060d}" for number in range(first, first + count)]


def write_result(
    folder: Path,
    scores: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    order: int = 2,
    tasks: Sequence[str] | None = None,
    protocol: Mapping[str, Any] | None = None,
    step: int = 100,
    **config: Any,
) -> Path:
    """A finished run of one method. scores: by metric, the primary first. config: further keys."""
    primary = next(iter(scores))
    tasks = names_of(len(scores[primary])) if tasks is None else tasks
    write_evaluation(
        folder,
        scores,
        tasks,
        seed,
        {**PROTOCOL, "checkpoint": "best", "order": order, **(protocol or {})},
        step,
    )
    cfg = {
        "seed": seed,
        "run_dir": str(folder),
        "choices": {"algo": "maml", "data": "glyphs"},
        "algo": {"order": order, "inner_lr": 0.4},
        "data": {"root": str(folder.parent), "cache_dir": f"cache of {seed}", "way": 5},
        "device": {"name": "cpu", "threads": seed + 1},
        "trainer": {"outer_steps": 100},
        **config,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    (folder / "env.json").write_text(json.dumps({"locations": {}, "data_sha256": "ab"}))
    (folder / "status.json").write_text(json.dumps({"status": "finished", "exit_code": 0}))
    return folder


def untrained(folder: Path) -> Path:
    """The same run, of a method that has nothing to train."""
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trains_on": None}))
    return folder


def write_evaluation(
    folder: Path,
    scores: Mapping[str, Sequence[float]],
    tasks: Sequence[str],
    seed: int,
    protocol: Mapping[str, Any],
    step: int = 100,
) -> None:
    """results.json and eval_test.csv, in the folder of a run or of RUN/evals."""
    folder.mkdir(parents=True)
    summary = {
        name: {"mean": float(np.mean(values)), "ci95": 0.01, "std": 0.1} for name, values in scores.items()
    }
    results = {
        "algo": "maml",
        "data": "glyphs",
        "model": "conv4",
        "experiment": None,
        "split": "test",
        "primary": next(iter(scores)),
        "metrics": summary,
        "formats": {name: FORMATS[name] for name in scores},
        "episodes": len(tasks),
        "step": step,
        "tasks_sha256": "cd",
        "protocol": dict(protocol),
        "may_differ": OWN,
        "seed": seed,
    }
    (folder / "results.json").write_text(json.dumps(results))
    with (folder / "eval_test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task_id", "task_sha256", *scores])
        for number, task in enumerate(tasks):
            writer.writerow([number, task, *(values[number] for values in scores.values())])
