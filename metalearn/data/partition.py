"""How classes are divided into splits: at random, by a seed of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from metalearn.core import Split
from metalearn.data.sampling import SPLITS
from metalearn.hashing import choose

PARTITION_DRAW = -4


def split_sizes(num_classes: int, fractions: Sequence[float]) -> dict[Split, int]:
    """Classes per split, rounded; train takes what the rounding leaves."""
    val, test = (round(num_classes * fraction) for fraction in fractions[1:])
    return {"train": num_classes - val - test, "val": val, "test": test}


def random_partition(num_classes: int, sizes: Mapping[Split, int], seed: int) -> dict[Split, list[int]]:
    """Disjoint class numbers of each split, sorted; a pure function of the seed."""
    order = choose(torch.tensor(PARTITION_DRAW), seed, count=num_classes, size=num_classes).tolist()
    partition: dict[Split, list[int]] = {}
    for split in SPLITS:
        partition[split], order = sorted(order[: sizes[split]]), order[sizes[split] :]
    return partition
