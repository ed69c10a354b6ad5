"""Judging on exactly the tasks of a file (`eval.tasks`), of whatever split their classes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from metalearn.core import SPLITS, Examples, Members, NamedTask, Row, Source, Split, TaskBatch, TaskSpec
from metalearn.engine.task_file import TaskLine, numbers_of, read_tasks, rows_of
from metalearn.errors import ConfigError, DataError
from metalearn.hashing import fold

PARTS = ("support", "query")


class LockedTasks(Source):
    """The tasks of a file, out of the data of another source; number i of any split is line i.

    The random numbers of a method follow from seed, split and the number of the line, as those of tasks that
    are drawn do, so that a file in another order is another evaluation.
    """

    def __init__(self, source: Source, path: Path, split: Split) -> None:
        self.source, self.path, self.split = source, path, split
        self.name = source.name
        self.owner_word, self.item_word = source.owner_word, source.item_word
        self.training_facts = source.training_facts
        self.lines = read_tasks(path)
        for line in self.lines:
            if line.source not in (None, source.name):
                raise ConfigError(
                    f"eval.tasks={path} lists tasks of data={line.source}, but the data are {source.name}; "
                    f"add data={line.source}"
                )
        self.spec_of_split = source.spec(split)
        self.by_numbers = source.named(split, seed=0, first=0, count=1) is None
        if self.by_numbers and self._classes:
            raise ConfigError(
                f"data={source.name} does not name its pictures, so that no file can list its tasks; leave "
                "eval.tasks out, or give the source `named`, `recognised` and `gathered`"
            )
        self.tasks_named = [] if self.by_numbers else [self._named(line) for line in self.lines]
        if self.by_numbers:
            for part in PARTS:
                self._of_numbers(self.lines, part)  # says now what is wrong with a row

    def spec(self, split: Split) -> TaskSpec:
        return self._spec

    @cached_property
    def _spec(self) -> TaskSpec:
        sizes = [(len(line.support), len(line.query)) for line in self.lines]
        support, query = (max(side) for side in zip(*sizes, strict=True))
        ragged = self.spec_of_split.ragged or len(set(sizes)) > 1
        found = replace(self.spec_of_split, support_size=support, query_size=query, ragged=ragged)
        if not self._classes:
            return found
        way = max(len({row.label for row in task.support}) for task in self.tasks_named)
        return replace(found, num_outputs=way, max_way=way)

    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        chosen = slice(first, first + count)
        if self.by_numbers:
            sides = [self._of_numbers(self.lines[chosen], part) for part in PARTS]
        else:
            named = self.tasks_named[chosen]
            sides = [self.source.gathered([getattr(task, part) for task in named]) for part in PARTS]
        support, query = (_padded(side, size) for side, size in zip(sides, self._sizes(), strict=True))
        numbers = torch.arange(first, first + count, device=support.mask.device)
        return TaskBatch(support, query, fold(seed, SPLITS.index(split), numbers))

    def named(self, split: Split, *, seed: int, first: int, count: int) -> list[NamedTask] | None:
        return None if self.by_numbers else self.tasks_named[first : first + count]

    def num_tasks(self, split: Split) -> int:
        return len(self.lines)

    def tasks_of(self, owners: set[str]) -> list[str]:
        """Names of the tasks that hold any of these classes or users."""
        return [
            task.name
            for task in self.tasks_named
            if any(row.owner in owners for row in (*task.support, *task.query))
        ]

    def members(self, split: Split) -> Members:
        """Those of the data, whatever their split, that the tasks are made of; None where one of them is not
        said to be in any, so that nobody knows whether it was trained on.
        """
        found: dict[str, Any] = {}
        for part in SPLITS:
            members = self.source.members(part)
            if members is None or isinstance(members, str):
                return members
            found |= {member.name: member for member in members}
        owners = dict.fromkeys(row.owner for task in self.tasks_named for row in (*task.support, *task.query))
        known = not self.by_numbers and all(owner in found for owner in owners)
        return [found[owner] for owner in owners] if known else None

    def groups(self) -> Any:
        return self.source.groups()

    def protocol(self, split: Split) -> dict[str, Any]:
        if split != self.split:
            return self.source.protocol(split)
        owners = {row.owner for task in self.tasks_named for row in task.support}
        return {
            **self.source.protocol(split),
            "split": split,
            "tasks": self.path.name,
            "way": _same(len({row.label for row in task.support}) for task in self.tasks_named),
            "shot": _same(shot for task in self.tasks_named for shot in _per_label(task.support)),
            "query_shot": _same(shot for task in self.tasks_named for shot in _per_label(task.query)),
            **({"num_classes": len(owners)} if self._classes else {}),
        }

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def content_sha256(self) -> str:
        return self.source.content_sha256()

    def preprocessing(self) -> dict[str, Any]:
        return self.source.preprocessing()

    @property
    def _classes(self) -> bool:
        return self.spec_of_split.kind == "classification"

    def _sizes(self) -> tuple[int, int]:
        return self._spec.support_size, self._spec.query_size

    def _named(self, line: TaskLine) -> NamedTask:
        """DataError for what the data lack, a query whose class was never shown, or a row on both sides."""
        sides = []
        for part in PARTS:
            try:
                sides.append([self.source.recognised(row, self.path.parent) for row in rows_of(line, part)])
            except DataError as error:
                raise DataError(f"{line.place}, task {line.name!r}, {part}: {error}") from error
        task = NamedTask(sides[0], sides[1], line.name)
        shared = {row[:2] + row[3:] for row in task.support} & {row[:2] + row[3:] for row in task.query}
        if shared:
            owner, item, _ = next(iter(shared))
            raise DataError(f"{line.place}, task {line.name!r}: {owner!r} {item!r} is in support and query")
        return _labelled(task, line) if self._classes else task

    def _of_numbers(self, lines: Sequence[TaskLine], part: str) -> Examples:
        """Rows that are nothing but their numbers, padded."""
        spec = self.spec_of_split.input_spec
        names = list(spec) if isinstance(spec, dict) else ["x"]
        values = {name: numbers_of(lines, part, name) for name in [*names, "y"]}
        try:
            tensors = {name: [torch.tensor(rows) for rows in tasks] for name, tasks in values.items()}
        except (TypeError, ValueError) as error:
            raise DataError(f"{lines[0].place} and below: a {part} row holds no numbers ({error})") from error
        width = max(len(rows) for rows in tensors["y"])
        mask = torch.zeros(len(lines), width, dtype=torch.bool)
        for task, rows in enumerate(tensors["y"]):
            mask[task, : len(rows)] = True
        stacked = {name: torch.nn.utils.rnn.pad_sequence(t, batch_first=True) for name, t in tensors.items()}
        like = self.source.tasks(self.split, seed=0, first=0, count=1).support
        inputs = like.x if isinstance(like.x, dict) else {"x": like.x}
        for name, wanted in {**inputs, "y": like.y}.items():
            for line, rows in zip(lines, tensors[name], strict=True):
                if rows.shape[1:] != wanted.shape[2:] or not rows.isfinite().all():
                    raise DataError(
                        f"{line.place}: {name} of a {part} row is not {list(wanted.shape[2:])} finite "
                        f"numbers, as in {wanted[0, 0].tolist()}"
                    )
        x: Any = (
            {name: stacked[name].to(values) for name, values in like.x.items()}
            if isinstance(like.x, dict)
            else stacked["x"].to(like.x)
        )
        return Examples(x, stacked["y"].to(like.y), mask.to(like.mask.device))


def judged_source(source: Source, tasks: str | None, split: Split) -> Source:
    """Where the tasks of an evaluation come from. tasks: the file of `eval.tasks`, which is read once for all
    that is asked of it as long as the source lives.
    """
    if tasks is None or isinstance(source, LockedTasks):
        return source
    kept: dict[tuple[str, Split], LockedTasks] = source.__dict__.setdefault("_locked_tasks", {})
    if (tasks, split) not in kept:
        kept[tasks, split] = LockedTasks(source, Path(tasks), split)
    return kept[tasks, split]


def _labelled(task: NamedTask, line: TaskLine) -> NamedTask:
    """With the classes of the support numbered in their order, where the file gives no labels."""
    rows = [*task.support, *task.query]
    given = [row.label is not None for row in rows]
    if any(given) and not all(given):
        raise DataError(f"{line.place}, task {line.name!r}: some rows have a label and others have none")
    if not any(given):
        numbers = {owner: i for i, owner in enumerate(dict.fromkeys(row.owner for row in task.support))}
        sides = [[row._replace(label=numbers.get(row.owner)) for row in side] for side in task[:2]]
        task = NamedTask(sides[0], sides[1], task.name)
    stands_for: dict[Any, Any] = {}
    for row in (*task.support, *task.query):
        for key, value in ((("label", row.label), row[::3]), (("class", row[::3]), row.label)):
            if stands_for.setdefault(key, value) != value:
                raise DataError(
                    f"{line.place}, task {line.name!r}: label {row.label} and class {row.owner!r} do not "
                    "belong together in every row"
                )
    shown = {row.label for row in task.support}
    odd = next((row for row in task.query if row.label not in shown), None)
    if odd is not None:
        raise DataError(
            f"{line.place}, task {line.name!r}: the query asks for {odd.owner!r}, of which the support shows "
            "nothing"
        )
    way = len(shown)
    if shown != set(range(way)):
        raise DataError(f"{line.place}, task {line.name!r}: labels are not 0 to {way - 1}")
    return task


def _padded(side: Examples, size: int) -> Examples:
    """With so many rows, which the mask hides: another batch of the file may hold larger tasks."""
    missing = size - side.mask.shape[1]
    if missing == 0:
        return side

    def longer(leaf: torch.Tensor) -> torch.Tensor:
        return torch.cat([leaf, leaf.new_zeros(len(leaf), missing, *leaf.shape[2:])], dim=1)

    x = {k: longer(v) for k, v in side.x.items()} if isinstance(side.x, dict) else longer(side.x)
    return Examples(x, longer(side.y), longer(side.mask))


def _per_label(rows: Sequence[Row]) -> list[int]:
    labels = [row.label for row in rows]
    return [labels.count(label) for label in dict.fromkeys(labels)]


def _same(values: Any) -> int | None:
    """What all are, or None."""
    found = set(values)
    return found.pop() if len(found) == 1 else None
