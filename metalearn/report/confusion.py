"""Which classes a method takes for which others, from predictions_<split>.safetensors; read without torch.

T tasks, W labels of a task, R queries of all tasks.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from metalearn.report.rows import Row
from metalearn.rundir.listing import rises
from metalearn.rundir.registry import MAX_TABLE

Array = np.ndarray[Any, Any]
NEEDED = ("task", "label", "probability", "classes")
MOST_PAIRS = 10
MOST_PARTS = 8


class Pair(NamedTuple):
    """`times` of `possible` queries of a class were taken for another that stood beside it in the task."""

    true: str
    predicted: str
    times: int
    possible: int


class Part(NamedTuple):
    """A class or a group of them: the primary metric over its queries. numbers: as the file has them."""

    kind: str
    name: str
    tasks: str
    queries: str
    mean: float
    ci95: float | None


class Predictions(NamedTuple):
    """true, predicted: (R,) index of a class. task: (R,). members: (T, W) classes of a task, -1 for none."""

    names: list[str]
    true: Array
    predicted: Array
    task: Array
    members: Array


def confused(row: Row) -> list[Pair] | str:
    """The pairs that a row's runs confuse most often, over all seeds; or why that cannot be said."""
    count: Counter[tuple[str, str]] = Counter()
    found: list[Predictions] = []
    for member in row.members:
        path = member.file("predictions", "safetensors")
        try:
            member.judged.refuse_outside(path)
        except ValueError as error:
            return f"{path.name} is not read: {error}"
        read = predictions(path)
        if isinstance(read, str):
            return read
        found.append(read)
        wrong = read.true != read.predicted
        pairs = zip(read.true[wrong].tolist(), read.predicted[wrong].tolist(), strict=True)
        count.update((read.names[true], read.names[other]) for true, other in pairs)
    return [
        Pair(*pair, times, sum(_possible(each, *pair) for each in found))
        for pair, times in count.most_common(MOST_PAIRS)
    ]


def _possible(read: Predictions, true: str, other: str) -> int:
    """Queries of one class in tasks where the other could have been answered."""
    if true not in read.names or other not in read.names:
        return 0
    first, second = read.names.index(true), read.names.index(other)
    beside = (read.members == second).any(1)
    return int(((read.true == first) & beside[read.task]).sum())


def predictions(path: Path) -> Predictions | str:
    """What a file of predictions says of named classes; or why it says nothing."""
    if not path.is_file():
        return f"there is no {path.name}"
    try:
        with safe_open(path, framework="numpy") as file:
            if missing := [name for name in NEEDED if name not in file.keys()]:  # noqa: SIM118
                what = "its classes have no names" if missing == ["classes"] else "it is of an older form"
                return f"{path.name} says nothing of classes: {what}"
            task, label, probability, members = (file.get_tensor(name) for name in NEEDED)
            names = json.loads((file.metadata() or {})["classes"])
        answer = probability.argmax(1)
        true, predicted = members[task, label], members[task, answer]
        good = isinstance(names, list) and min(true.min(), predicted.min()) >= 0
        if not good or max(true.max(), predicted.max()) >= len(names):
            return f"{path.name} is damaged: it names classes that it does not list"
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        return f"{path.name} is damaged: {' '.join(str(error).split())[:200]}"
    return Predictions([str(name) for name in names], true, predicted, task, members)


def worst_parts(row: Row) -> list[Part]:
    """The classes and groups on which the first run of a row is worst, by kind; empty without a breakdown."""
    path = row.first.file("breakdown", "csv")
    try:
        text = row.first.judged.read(path, MAX_TABLE).decode("utf-8")
        found = [_part(line) for line in csv.DictReader(io.StringIO(text, newline=""))]
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        return []
    higher = rises(row.first.results)
    kept: list[Part] = []
    for kind in dict.fromkeys(part.kind for part in found):
        of_kind = [part for part in found if part.kind == kind]
        kept += sorted(of_kind, key=lambda part: part.mean if higher else -part.mean)[:MOST_PARTS]
    return kept


def _part(line: dict[str, str]) -> Part:
    ci95 = float(line["ci95"]) if line["ci95"] else None
    return Part(line["kind"], line["name"], line["tasks"], line["queries"], float(line["mean"]), ci95)
