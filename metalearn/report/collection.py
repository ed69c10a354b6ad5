"""What a report reads of run folders: each result with everything that lies beside it, and the names of what
an older run lacks. Nothing is an error here but a path without runs.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.errors import ConfigError, DataError
from metalearn.report.methods import Facts, facts_from
from metalearn.rundir import reader
from metalearn.rundir.reader import Line
from metalearn.rundir.registry import (
    Judgement,
    Scores,
    cells_in_words,
    distinct,
    expanded,
    judged_folders,
    scores,
)

TASK_ID = "task_sha256"
LONGEST_HEAD = 1 << 20  # letters


@dataclass(frozen=True)
class Reported:
    """A result, of a run or of one of its evaluations. config, env, overrides: empty where they are gone."""

    judged: Judgement
    config: dict[str, Any]
    env: dict[str, Any]
    overrides: list[str]

    @property
    def results(self) -> dict[str, Any]:
        return self.judged.results

    @property
    def folder(self) -> Path:
        return self.judged.folder

    @property
    def is_evaluation(self) -> bool:
        return self.judged.folder != self.judged.run_dir

    @functools.cached_property
    def facts(self) -> Facts:
        """What its method is; a run without a configuration is a method of its own."""
        found = facts_from(self.config, self.env, self.results)
        return found if self.config else Facts(found.choices, {**found.science, "folder": str(self.folder)})

    @property
    def value(self) -> dict[str, Any]:
        """mean, ci95 and std of the primary metric."""
        return dict(self.results["metrics"][self.results["primary"]])

    @functools.cached_property
    def lines(self) -> list[Line]:
        """What the run measured while it trained; empty where that cannot be read."""
        try:
            return reader.read_metrics(self.judged.run_dir)
        except DataError:
            return []

    @functools.cached_property
    def scores(self) -> Scores | str:
        """The primary metric of every task, or why it cannot be had."""
        try:
            return scores(self.judged, self.results["primary"])
        except (ConfigError, DataError) as error:
            return str(error)

    def file(self, stem: str, kind: str) -> Path:
        """predictions_test.safetensors for the split that was judged."""
        return self.folder / f"{stem}_{self.results['split']}.{kind}"

    @functools.cached_property
    def lacks(self) -> list[str]:
        """What a run of today would have left besides."""
        results, table = self.results, self.judged.csv
        missing = [name for name in ("tasks_sha256", "may_differ", "trains_on") if name not in results]
        if self.is_classification and "reliability" not in results:
            missing.append("reliability")
        if "data_sha256" not in results["protocol"]:
            missing.append("data_sha256 in its protocol")
        missing += [] if table.is_file() else [table.name]
        if table.is_file() and TASK_ID not in columns(self.judged):
            missing.append(f"{TASK_ID} in {table.name}")
        predictions = self.file("predictions", "safetensors")
        missing += [] if predictions.is_file() else [predictions.name]
        known = {"config.yaml": self.config, "env.json": self.env, "metrics.jsonl": self.lines}
        return missing + [name for name, content in known.items() if not content]

    @property
    def is_classification(self) -> bool:
        return str(self.results["primary"]).startswith("accuracy")


class Pending(NamedTuple):
    """A run without a result that could be read. step: the last one that it told of."""

    folder: Path
    state: str
    step: int | None
    reason: str


class Collection(NamedTuple):
    reported: list[Reported]
    pending: list[Pending]


def collected(words: Sequence[str]) -> Collection:
    """Every result that lies in the folders that words name, evaluations included, each once.

    ConfigError for a word that names nothing, and for a path without runs.
    """
    paths = expanded(words)
    if not paths:
        raise ConfigError(f"{' '.join(words)} matches files only; name folders of runs")
    folders = [folder for path in paths for folder in judged_folders(path)]
    for folder in list(folders):
        if folder.parent.name != "evals":
            inside = sorted((folder / "evals").glob("*/results.json"))
            folders += [path.parent for path in inside]
    found = [_reported(folder) for folder in distinct(folders)]
    return Collection(
        [one for one in found if isinstance(one, Reported)],
        [one for one in found if isinstance(one, Pending)],
    )


def columns(judged: Judgement) -> list[str]:
    """The head of the table of tasks; empty for a file that is none."""
    try:
        judged.refuse_outside(judged.csv)
        with judged.csv.open(encoding="utf-8", newline="") as file:
            return next(csv.reader([file.readline(LONGEST_HEAD)]), [])
    except (OSError, ValueError, csv.Error):
        return []


def _reported(folder: Path) -> Reported | Pending:
    inside = folder.parent.name == "evals" and (folder.parent.parent / "config.yaml").exists()
    run_dir = folder.parent.parent if inside else folder
    try:
        results = reader.read_results(folder / "results.json")
    except DataError as error:
        return Pending(folder, "damaged", None, str(error))
    if results is None:
        return _pending(folder)
    config = _lenient(lambda: reader.read_yaml(run_dir / "config.yaml"))
    env = _lenient(lambda: reader.read_json(run_dir / "env.json"))
    return Reported(Judgement(folder, run_dir, results), config, env, _words(run_dir))


def _pending(folder: Path) -> Pending:
    if cells := cells_in_words(folder):
        return Pending(folder, "grid", None, cells)
    now = reader.state(folder)
    try:
        lines = reader.read_metrics(folder)
    except DataError:
        lines = []
    reason = reader.last_words(folder) if now == "failed" else ""
    if now in ("killed", "preempted", "failed"):
        reason = "; ".join([*([reason] if reason else []), f"go on with: metalearn resume {folder}"])
    return Pending(folder, now, max((line["step"] for line in lines), default=None), reason)


def _lenient(read: Callable[[], Any]) -> dict[str, Any]:
    try:
        found = read()
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _words(run_dir: Path) -> list[str]:
    try:
        found = reader.read_yaml(run_dir / "overrides.yaml")
    except (OSError, ValueError):
        return []
    return [str(word) for word in found] if isinstance(found, list) else []
