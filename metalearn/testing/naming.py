"""What a source keeps that names its rows: the names of a task are enough to have it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from metalearn.core import SPLITS, Examples
from metalearn.engine.task_names import task_hashes
from metalearn.testing.checking import NotApplicable, equal, require

if TYPE_CHECKING:
    from metalearn.testing.sources import SourceTrial

TASKS = 6


def tasks_have_an_identity(trial: SourceTrial) -> str:
    """The same whatever batch they come in, and another for another task."""
    hashes = task_hashes(trial.source, "val", seed=3, count=TASKS)
    again = task_hashes(trial.make(), "val", seed=3, count=TASKS - 1)
    require(again == hashes[:-1], "the same tasks have another task_sha256 in a source that was made anew")
    require(
        len(set(hashes)) == TASKS,
        f"{TASKS} tasks have {len(set(hashes))} task_sha256; name their rows in their order, with labels",
    )
    return f"task_sha256 of {TASKS} tasks"


def named_tasks_can_be_gathered_again(trial: SourceTrial) -> str:
    """`gathered(recognised(named))` is what `tasks` gives, row by row."""
    owners = set()
    for split in SPLITS:
        named = trial.source.named(split, seed=1, first=2, count=TASKS)
        if named is None:
            raise NotApplicable("its rows have no names")
        tasks = trial.tasks(split, TASKS, first=2, seed=1)
        for part in ("support", "query"):
            rows = [[trial.source.recognised(row, Path()) for row in getattr(task, part)] for task in named]
            require(
                rows == [getattr(task, part) for task in named],
                f"`recognised` changes the names of {part} rows that `named` gave (split {split})",
            )
            found, expected = trial.source.gathered(rows), getattr(tasks, part)
            require(
                equal(real_rows(found), real_rows(expected)),
                f"`gathered` makes other {part} rows of their names than `tasks` gave (split {split})",
            )
        owners |= {row.owner for task in named for row in task.support}
    return f"{len(owners)} owners named and found again"


def real_rows(side: Examples) -> list[torch.Tensor]:
    """Inputs, by name where there are several, and targets without padding, all tasks one after the other."""
    inputs = [side.x[name] for name in sorted(side.x)] if isinstance(side.x, dict) else [side.x]
    return [part[side.mask] for part in (*inputs, side.y)]
