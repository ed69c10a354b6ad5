"""Which classes and examples an episode holds: pure functions of (seed, split, task index), all tasks at
once.

Nothing is carried from one call to the next, so the same task comes out for any meta-batch size, plan,
process count and resume point. Shape letters: T tasks, W ways, K shots, C classes, N examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from metalearn.core import SPLITS as SPLITS
from metalearn.core import Split
from metalearn.hashing import choose, fold, keys

SPLIT_IDS = {"train": 0, "val": 1, "test": 2}
# Words folded into a task's key. Negative, since algorithms number their own draws 0, 1, …
CLASS_DRAW, EXAMPLE_DRAW, EPOCH_DRAW, QUERY_DRAW = -1, -2, -3, -4
# Keys hashed per block of tasks: 1 MiB of int64 stays in a core's cache, which doubles the speed on 4,112
# classes.
BLOCK = 1 << 17
INDEX_BITS = 20


@dataclass(frozen=True, eq=False)
class ClassStore:
    """The examples of one split, on one device, sorted by class. rows: (N, …); size: int64 (C,), examples per
    class.
    """

    rows: Tensor
    size: Tensor

    @cached_property
    def first(self) -> Tensor:
        """Row number of the first example of each class, int64 (C,)."""
        return self.size.cumsum(0) - self.size

    @cached_property
    def largest(self) -> int:
        return int(self.size.max())

    @cached_property
    def class_of_row(self) -> Tensor:
        return torch.repeat_interleave(self.size)

    @property
    def num_classes(self) -> int:
        return len(self.size)


def task_keys(seed: int, split: Split, *, first: int, count: int, device: torch.device) -> Tensor:
    """int64 (count,): hash of (seed, split, task index), task indices counted from the start of the run."""
    return fold(seed, SPLIT_IDS[split], torch.arange(first, first + count, device=device), device=device)


def draw_classes(key: Tensor, num_classes: int, way: int) -> Tensor:
    """`way` different classes per task in random order, int64 (T, W): the column is the label."""
    block = max(1, BLOCK // num_classes)
    parts = [choose(part, CLASS_DRAW, count=num_classes, size=way) for part in key.split(block)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def draw_examples(key: Tensor, classes: Tensor, store: ClassStore, shot: int) -> Tensor:
    """Row numbers (T, W, shot) of `shot` different examples of each class, in random order."""
    random = keys(key[:, None], EXAMPLE_DRAW, classes, count=store.largest, bits=INDEX_BITS)
    index = random & ((1 << INDEX_BITS) - 1)
    absent = index >= store.size[classes][..., None]
    top = random.masked_fill(absent, torch.iinfo(torch.int64).min).topk(shot, dim=-1).values
    return store.first[classes][..., None] + (top & ((1 << INDEX_BITS) - 1))


def draw_episodes(
    key: Tensor, store: ClassStore, classes: Tensor, *, shot: int, query_shot: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Row numbers of support (T, W·shot) and query (T, W·query_shot), disjoint, and the labels of the
    queries. classes: (T, W), the column is the label.

    The support is sorted by label; the queries stand in random order, so that a place tells nothing of the
    answer.
    """
    rows = draw_examples(key, classes, store, shot + query_shot)
    support, query = rows[..., :shot].flatten(1), rows[..., shot:].flatten(1)
    order = choose(key, QUERY_DRAW, count=query.shape[1], size=query.shape[1])
    return support, query.gather(1, order), order // query_shot


def shuffled(seed: int, split: Split, *, first: int, count: int, total: int, device: torch.device) -> Tensor:
    """Entries first … first+count-1 of an endless stream of shuffled passes over range(total), int64
    (count,).

    Each pass holds every index once; a pass is a pure function of (seed, split, its number).
    """
    parts = []
    while count > 0:
        epoch, start = divmod(first, total)
        stop = min(total, start + count)
        parts.append(_pass(seed, SPLIT_IDS[split], epoch, total, device)[start:stop])
        first, count = first + stop - start, count - (stop - start)
    return torch.cat(parts)


# Two passes are kept, since a batch may straddle them; this saves a sort of the whole split per batch.
@lru_cache(maxsize=4)
def _pass(seed: int, split_id: int, epoch: int, total: int, device: torch.device) -> Tensor:
    return choose(torch.full((), EPOCH_DRAW, device=device), seed, split_id, epoch, count=total, size=total)


def blocks(total: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, count) of consecutive blocks of at most `size` out of `total`."""
    for start in range(0, total, size):
        yield start, min(size, total - start)
