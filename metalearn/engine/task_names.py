"""What a task is, whoever meets it: its rows by name, in order, with their answers, and a sha256 over that.

Neither seed nor split nor number nor preprocessing is in it, so that a network at 28 pixels and one at 84
meet the same task. `task_sha256` is the sha256 of this JSON, UTF-8, without blanks:

    [source, [[owner, item, label], …], [[owner, item, label], …]]

support first, and with the degrees as a fourth entry where a picture was turned. Of rows without a name, as
of functions, it is the sha256 of the source's name and the numbers in float32, little-endian: the support's
inputs (by name, where they are several), then its answers, real rows only, then those of the query.
`tasks_sha256` is the sha256 of the task's sums in hexadecimal, one after the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from metalearn.core import Examples, NamedTask, Row, Source, Split, TaskBatch

AT_ONCE = 500  # tasks whose names are held
DRAWN_AT_ONCE = 20  # tasks whose numbers are


def row_entry(row: Row) -> list[Any]:
    entry: list[Any] = [row.owner, row.item, row.label]
    return [*entry, row.turned] if row.turned else entry


def named_sha256(source: str, task: NamedTask) -> str:
    sides = [[row_entry(row) for row in side] for side in (task.support, task.query)]
    text = json.dumps([source, *sides], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def numbers_sha256(source: str, batch: TaskBatch, task: int) -> str:
    """Of task number `task` of the batch."""
    whole = hashlib.sha256(source.encode())
    for side in (batch.support, batch.query):
        for part in real_rows(side, task).values():
            whole.update(np.ascontiguousarray(part, dtype="<f4").tobytes())
    return whole.hexdigest()


def real_rows(side: Examples, task: int) -> dict[str, np.ndarray[Any, Any]]:
    """{x (or the names of several inputs, sorted): (n, …), y: (n, …)} of one task's real rows."""
    real = side.mask[task].cpu()
    inputs = side.x if isinstance(side.x, dict) else {"x": side.x}
    parts = {name: inputs[name] for name in sorted(inputs)} | {"y": side.y}
    return {name: part[task].cpu()[real].numpy() for name, part in parts.items()}


def task_hashes(source: Source, split: Split, *, seed: int, count: int) -> list[str]:
    """task_sha256 of tasks 0 … count-1."""
    found: list[str] = []
    while len(found) < count:
        size = min(AT_ONCE, count - len(found))
        named = source.named(split, seed=seed, first=len(found), count=size)
        if named is not None:
            found += [named_sha256(source.name, task) for task in named]
            continue
        size = min(DRAWN_AT_ONCE, size)
        batch = source.tasks(split, seed=seed, first=len(found), count=size)
        found += [numbers_sha256(source.name, batch, task) for task in range(size)]
    return found


def tasks_sha256(hashes: Sequence[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def lines(source: Source, split: Split, *, seed: int, count: int) -> Iterator[dict[str, Any]]:
    """The tasks as a file of tasks has them, one JSON mapping each."""
    for first in range(0, count, AT_ONCE):
        size = min(AT_ONCE, count - first)
        named = source.named(split, seed=seed, first=first, count=size)
        if named is None:
            batch = source.tasks(split, seed=seed, first=first, count=size)
        for task in range(size):
            sides = (
                {"support": _numbers(batch.support, task), "query": _numbers(batch.query, task)}
                if named is None
                else {part: [_names(source, row) for row in getattr(named[task], part)] for part in PARTS}
            )
            yield {"task": str(first + task), "source": source.name, **sides}


PARTS = ("support", "query")


def _names(source: Source, row: Row) -> dict[str, Any]:
    entry = {source.owner_word: row.owner, source.item_word: row.item, "label": row.label}
    return {**entry, "turned": row.turned} if row.turned else entry


def _numbers(side: Examples, task: int) -> list[dict[str, Any]]:
    """Decimals that are equal to the numbers in their own precision."""
    parts = {name: _decimals(part) for name, part in real_rows(side, task).items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]


def _decimals(part: np.ndarray[Any, Any]) -> list[Any]:
    if not np.issubdtype(part.dtype, np.floating):
        whole: list[Any] = part.tolist()
        return whole
    return part.astype(str).astype(float).tolist()  # type: ignore[no-any-return]
