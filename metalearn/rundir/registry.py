"""Finding runs and their evaluations on a disk, and what each task of them scored: the folders are the
registry, and nothing else is kept. Nothing here writes, and nothing needs torch.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn import files
from metalearn.errors import ConfigError, DataError
from metalearn.rundir.reader import read_results, state

MARKS = ("config.yaml", "status.json", "overrides.yaml")  # of a run; a job that has not begun has the last
MAX_TABLE, MAX_PICTURE = 256 << 20, 20 << 20  # bytes that are read of a CSV, of a PNG
IDENTITY = ("task_id", "task_sha256", "eval_seed")  # columns of eval_<split>.csv that are no score
MOST_CELLS = 4  # of a grid that are named
# Facts that a result of before `may_differ` is compared by.
OLDER_FACTS = (
    *("data", "split", "way", "shot", "query_shot", "partition", "partition_seed", "num_classes"),
    *("transductive", "seen_in", "cross_domain"),
)
# Of a protocol: which tasks were judged, and how many. Whether they are shared is told by task_sha256.
TASK_FACTS = (
    *("eval_seed", "eval_seeds", "episodes", "tasks", "num_classes"),
    *("ci_target", "ci_rule", "ci_reached"),
)


class Judgement(NamedTuple):
    """A result on a disk. folder: holds results.json and eval_<split>.csv. run_dir: of the run whose weights
    were judged; the folder itself, unless it is RUN_DIR/evals/<protocol>.
    """

    folder: Path
    run_dir: Path
    results: dict[str, Any]

    @property
    def csv(self) -> Path:
        return self.folder / f"eval_{self.results['split']}.csv"

    def read(self, path: Path, max_bytes: int) -> bytes:
        """The content of a file of this result. OSError, or ValueError for what is no regular file of the run
        or too large.
        """
        self.refuse_outside(path)
        return files.read_bytes(path, max_bytes)

    def refuse_outside(self, path: Path) -> None:
        """ValueError for a link out of the run's folder, which may be a stranger's."""
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.run_dir)):
            raise ValueError("it is a link that leads out of the folder of its run")


class Scores(NamedTuple):
    """One metric of every task, in the order of the evaluation. tasks: sha256 of each."""

    tasks: list[str]
    values: list[float]


def run_folders(root: Path) -> Iterator[Path]:
    """Every run at or below a folder, by name; a run's own folders are not looked into."""
    try:
        with os.scandir(root) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    if any(entry.name in MARKS for entry in found):
        yield root
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from run_folders(Path(entry.path))


def expanded(words: Sequence[str]) -> list[Path]:
    """The folders that words name: runs, evaluations, folders of them, or patterns such as 'outputs/*maml*'.

    ConfigError for a word that names nothing.
    """
    found: list[Path] = []
    for word in words:
        paths = [Path(word)] if Path(word).exists() else [Path(path) for path in sorted(glob.glob(word))]
        if not paths:
            what = "matches nothing" if glob.has_magic(word) else "does not exist"
            raise ConfigError(f"{word} {what}; list the runs with: metalearn ls runs")
        found += [path for path in paths if path.is_dir()] if len(paths) > 1 else paths
    return distinct(found)


def distinct(paths: Iterable[Path]) -> list[Path]:
    """Each place once, by the first of its names."""
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def judged_folders(path: Path) -> list[Path]:
    """The folders with a result that a path stands for: an evaluation, a run, or all runs below it.

    ConfigError if there is no run.
    """
    if path.is_dir() and path.parent.name == "evals" and (path.parent.parent / "config.yaml").exists():
        return [path]
    runs = list(run_folders(path))
    if not runs:
        raise ConfigError(f"{path} holds no run; list the runs with: metalearn ls runs")
    return runs


def judgement(folder: Path) -> Judgement:
    """The result in a folder. ConfigError for a run that has none yet, DataError for one that is damaged."""
    found = read_results(folder / "results.json")
    if found is None:
        if cells := cells_in_words(folder):
            raise ConfigError(f"{folder} is a grid: name {cells}")
        now = state(folder) if any((folder / name).exists() for name in MARKS) else "not finished"
        goes_on = now not in ("running", "not finished", "not started")
        way = f"; go on with: metalearn resume {folder}" if goes_on else ""
        raise ConfigError(f"{folder} has no result yet: it is {now}{way}")
    inside = folder.parent.name == "evals"
    return Judgement(folder, folder.parent.parent if inside else folder, found)


def cells_in_words(folder: Path) -> str:
    """Where the results of a grid lie, RUN_DIR/evals/grid_<protocol>; empty for what is no grid."""
    try:
        tree = files.read_json(folder / "grid.json")
        cells = [str(cell["folder"]) for cell in tree["cells"] if "folder" in cell]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    shown = [str(folder.parent.parent / cell) for cell in cells[:MOST_CELLS]]
    more = f" and {len(cells) - len(shown)} more" if len(cells) > len(shown) else ""
    return f"its {len(cells)} cells, which have a result each: {', '.join(shown)}{more}"


def judgements(words: Sequence[str]) -> list[Judgement]:
    """All results that words name, each once. Errors as in `expanded`, `judged_folders` and `judgement`."""
    folders = [folder for path in expanded(words) for folder in judged_folders(path)]
    return [judgement(folder) for folder in distinct(folders)]


def comparable_facts(results: dict[str, Any]) -> dict[str, Any]:
    """The facts of a protocol that must be equal where numbers stand beside each other.

    Those that `may_differ` names are the method's own, or say what was done to inputs.
    """
    free, protocol = results.get("may_differ"), results["protocol"]
    if free is None:
        return {name: protocol[name] for name in OLDER_FACTS if name in protocol}
    return {name: value for name, value in protocol.items() if name not in free}


def protocol_facts(results: dict[str, Any]) -> dict[str, Any]:
    """The comparable facts but for those of the tasks: equal for results that may share a table."""
    facts = {name: value for name, value in comparable_facts(results).items() if name not in TASK_FACTS}
    return {"data": results.get("data"), **facts}  # an older protocol does not name its data


def protocol_key(results: dict[str, Any]) -> str:
    """Equal for results that were measured alike."""
    return canonical([results["primary"], results["split"], protocol_facts(results)])


def canonical(value: Any) -> str:
    """JSON that is equal for equal values, whatever a stranger's YAML has for keys."""
    return json.dumps(_with_words(value), sort_keys=True, default=str)


def _with_words(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_words(part) for key, part in value.items()}
    return [*map(_with_words, value)] if isinstance(value, (list, tuple)) else value


def scores(judged: Judgement, metric: str) -> Scores:
    """DataError for a file that is missing, torn or holds what is no finite number; ConfigError for a metric
    or an identity of tasks that it lacks.
    """
    path = judged.csv
    again = f"judge again with: metalearn eval {judged.run_dir}"
    try:
        text = judged.read(path, MAX_TABLE).decode("utf-8")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); {again}") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} is no table ({error}); {again}") from error
    head, body = (rows[0], rows[1:]) if rows else ([], [])
    if len(body) != judged.results["episodes"] or any(len(row) != len(head) for row in body):
        raise DataError(
            f"{path} is torn: it has {len(body)} whole or broken rows where results.json says "
            f"{judged.results['episodes']} tasks; {again}"
        )
    if "task_sha256" not in head:
        raise ConfigError(f"{path} is older than task_sha256, which says which tasks these were; {again}")
    if metric not in head:
        known = ", ".join(name for name in head if name not in IDENTITY)
        raise ConfigError(f"{path} has no column {metric}; choose one of {known}")
    column, task = head.index(metric), head.index("task_sha256")
    try:
        values = [float(row[column]) for row in body]
    except ValueError as error:
        raise DataError(f"{path}, column {metric}: {error}; {again}") from error
    bad = next((number for number, value in enumerate(values) if not math.isfinite(value)), None)
    if bad is not None:
        raise DataError(
            f"{path} has {metric}={values[bad]} for task {bad}; a mean over such tasks says nothing: look at "
            "that task, or lower the rates and train again"
        )
    return Scores([row[task] for row in body], values)
