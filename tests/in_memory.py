"""Tasks from a few tensors, one source for each kind of task, so that a method is tried in milliseconds.

Every tensor is contiguous, as those of other batches are: another layout would be compiled anew.
T tasks, G groups (classes, curves or users), R rows of a group.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metalearn.core import Examples, Inputs, InputSpec, Kind, Member, Members, Source, Split, Task, TaskSpec
from metalearn.data.sampling import SPLITS, ClassStore, draw_classes, draw_episodes, shuffled, task_keys
from metalearn.hashing import fold, normal, permutation, uniform
from metalearn.objectives import Classification, Rating, Regression

GROUPS: dict[Split, int] = {"train": 20, "val": 12, "test": 12}
ROWS = 8  # of a group
QUERY = 3  # of the rows of a curve or user
SIZE = 14  # of the side of an image; four strides of two leave one pixel
OBJECTIVES = {"classification": Classification(), "regression": Regression(), "rating": Rating()}
INPUTS: dict[Kind, InputSpec | dict[str, InputSpec]] = {
    "classification": InputSpec((1, SIZE, SIZE)),
    "regression": InputSpec((1,)),
    "rating": {"user": InputSpec((2,), 6), "item": InputSpec((2,), 9)},
}


class InMemory(Source):
    """kind: of its tasks. ragged: whether some users have rated less than others."""

    name = "in_memory"

    def __init__(self, kind: Kind, *, ragged: bool = False, way: int = 3, shot: int = 2) -> None:
        if kind == "classification" and way > min(GROUPS.values()):
            raise ValueError(f"way={way}, but a split has {min(GROUPS.values())} classes; lower it")
        self.kind: Kind = kind
        self.ragged, self.way, self.shot = ragged, way, shot
        first = {split: sum(GROUPS[earlier] for earlier in SPLITS[:i]) for i, split in enumerate(SPLITS)}
        self.keys = {
            split: fold(17, torch.arange(first[split], first[split] + GROUPS[split])) for split in SPLITS
        }

    def spec(self, split: Split) -> TaskSpec:
        classes = self.kind == "classification"
        return TaskSpec(
            self.kind,
            OBJECTIVES[self.kind],
            self.way if classes else 1,
            INPUTS[self.kind],
            support_size=self.way * self.shot if classes else ROWS - QUERY,
            query_size=self.way * QUERY if classes else QUERY,
            max_way=self.way if classes else 0,
            num_train_classes=GROUPS["train"] if classes else 0,
            ragged=self.ragged,
        )

    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> Task:
        key = task_keys(seed, split, first=first, count=count, device=torch.device("cpu"))
        if self.kind == "classification":
            store = self._classes(split)
            classes = draw_classes(key, store.num_classes, self.way)
            support, query, y = draw_episodes(key, store, classes, shot=self.shot, query_shot=QUERY)
            labels = torch.arange(self.way).repeat_interleave(self.shot).repeat(count, 1)
            return Task(
                *(Examples(store.rows[rows], of, real(of)) for rows, of in ((support, labels), (query, y))),
                key,
            )
        group = shuffled(
            seed, split, first=first, count=count, total=GROUPS[split], device=torch.device("cpu")
        )
        x, y = tree_map(lambda values: values[group], self._groups(split))
        order = permutation(fold(key, 1), (ROWS,))
        x, y = tree_map(
            lambda values: values.gather(1, order[..., None].expand(-1, -1, values.shape[2])), (x, y)
        )
        mask = real(y[..., 0])
        if self.ragged:  # of the rows behind the query, one to all
            rated = QUERY + 1 + (uniform(self.keys[split][group], ()) * (ROWS - QUERY)).long()
            mask = torch.arange(ROWS) < rated[:, None]
        rows = Examples(x, y * mask[..., None], mask)
        support, query = (
            Examples(*tree_map(lambda values, part=part: values[:, part].contiguous(), tuple(rows)))
            for part in (slice(QUERY, None), slice(QUERY))
        )
        return Task(support, query, key)

    def examples(self, *, seed: int, first: int, count: int) -> Examples:
        if self.kind != "classification":
            return super().examples(seed=seed, first=first, count=count)
        store = self._classes("train")
        rows = shuffled(
            seed, "train", first=first, count=count, total=len(store.rows), device=torch.device("cpu")
        )
        return Examples(store.rows[rows], store.class_of_row[rows], real(rows))

    def members(self, split: Split) -> Members:
        return [Member(f"{self.name} {self.kind}", f"{split} {n}") for n in range(GROUPS[split])]

    def protocol(self, split: Split) -> dict[str, Any]:
        sizes = {"way": self.way, "shot": self.shot, "query_shot": QUERY}
        return {"data": self.name, "split": split, **sizes, "partition": "none", "augmentation": "none"}

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.kind} {self.ragged}".encode()).hexdigest()

    @cache  # noqa: B019 - a source lives as long as its tests
    def _classes(self, split: Split) -> ClassStore:
        """A template per class, and noise."""
        key = self.keys[split]
        template = uniform(fold(key, 2), (SIZE, SIZE))
        images = template[:, None] + normal(fold(key, 3), (ROWS, SIZE, SIZE)) * 0.2
        return ClassStore(number(images).reshape(-1, 1, SIZE, SIZE), torch.full((len(key),), ROWS))

    def _groups(self, split: Split) -> tuple[Inputs, Tensor]:
        """Inputs (G, R, …) and targets (G, R, 1): sines of a phase each, or users and what they rated."""
        key = self.keys[split]
        taste = uniform(fold(key, 2), (1,))
        if self.kind == "regression":
            x = 6 * uniform(fold(key, 3), (ROWS,)) - 3
            return number(x)[..., None], number(torch.sin(x - 3 * taste))[..., None]
        item = permutation(fold(key, 3), (ROWS + 1,))[:, :ROWS]
        user = torch.stack([key % 3, 3 + key // 3 % 3], -1)[:, None].expand(-1, ROWS, -1)
        y = 1 + 4 * (taste + uniform(fold(17, item), ())) / 2
        return {"user": user, "item": torch.stack([item, (item + 1) % 9], -1)}, number(y)[..., None]


def number(values: Tensor) -> Tensor:
    return values.to(torch.get_default_dtype())


def real(like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool)
