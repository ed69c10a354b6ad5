"""What all sources of labelled images share: splits of classes, rotations as classes, episodes, flat
minibatches.

Images live on the device as uint8, one tensor per split, rotated copies included; a batch is a gather.
Shape letters: T tasks, N images, C channels.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.core import (
    SPLITS,
    Examples,
    InputSpec,
    Member,
    Members,
    NamedTask,
    Row,
    Source,
    Split,
    TaskBatch,
    TaskSpec,
    one_of,
)
from metalearn.data.files.image_file import Picture
from metalearn.data.image_index import ImageIndex
from metalearn.data.pictures import Pictures
from metalearn.data.sampling import ClassStore, draw_classes, draw_episodes, shuffled, task_keys
from metalearn.errors import raise_if
from metalearn.hashing import fold
from metalearn.objectives import Classification

TURNS = 4  # by which rotations multiply classes
TURN_DRAW = -5  # folded into a task's key, beside the words of `metalearn.data.sampling`


@dataclass(frozen=True)
class EpisodeShape:
    """Sizes of the episodes of one split. keys: where each size was set, for messages."""

    way: int
    shot: int
    query_shot: int
    keys: tuple[str, str, str] = ("data.way", "data.shot", "data.query_shot")

    @property
    def per_class(self) -> int:
        return self.shot + self.query_shot


@dataclass(frozen=True, eq=False)
class ImageSet:
    """All images of a source, sorted by class. images: uint8 (N, C, H, H); sizes: images per class, in order.

    partition: class numbers of each split. sha256: over the images and classes.
    names: of the classes; None: they have none. contents: sha256 of each class before anything was done to
    its images; None: no files. items: names of the images in the order of `images`; None: numbers from 1 on
    within the class.
    """

    images: Tensor
    sizes: Sequence[int]
    partition: Mapping[Split, Sequence[int]]
    sha256: str
    names: Sequence[str] | None = None
    contents: Sequence[str] | None = None
    items: Sequence[str] | None = None


class ImageClasses(Source):
    """Few-shot classification of images. A subclass says where the images come from, and what the dials mean.

    train: sizes of the training episodes where they differ; None means as in val and test.
    rotations: the splits whose images are turned. rotations_as: with `classes` each of the four turned copies
    is a class of its own, so that a task may hold two of one class; with `tasks` the classes of a task are
    distinct, each in a turn that is drawn for it there. Flat minibatches hold the copies as classes.
    invert: 1 - x, so that ink drawn black on white becomes 1 on 0.
    resize: what brings a picture to image_size; `area` also stands for images that are made at that size.
    The constructor touches no file; the first use does, and so does `prepare`.
    """

    resize = "area"
    item_word = "drawing"
    training_facts = ("augmentation", "rotations")

    def __init__(
        self,
        *,
        device: torch.device,
        way: int,
        shot: int,
        query_shot: int,
        train: Mapping[str, int | None] | None,
        rotations: Sequence[Split],
        rotations_as: str,
        invert: bool,
        image_size: int,
        channels: int = 1,
    ) -> None:
        self.device = torch.device(device)
        self.shapes = episode_shapes(way, shot, query_shot, train)
        self.rotations = tuple(split for split in SPLITS if split in rotations)
        self.rotations_as, self.invert = rotations_as, invert
        self.input_spec = InputSpec((channels, image_size, image_size))
        for i, split in enumerate(rotations):
            one_of(f"data.rotations[{i}]", split, SPLITS)
        one_of("data.rotations_as", rotations_as, ("classes", "tasks"))

    @abstractmethod
    def _load(self) -> ImageSet:
        """Read, verify and decode; called once. Raises DataError."""

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """What a result must state beyond the sizes of its episodes: partition, resize, …"""

    def _counts(self) -> Mapping[Split, tuple[int, int]]:
        """Classes of each split, rotated copies aside, and images of the smallest. Override where these are
        known without an image.
        """
        sizes = {
            split: [self._set.sizes[number] for number in self._set.partition[split]] for split in SPLITS
        }
        return {split: (len(size), min(size, default=0)) for split, size in sizes.items()}

    def _size_problems(self, splits: Sequence[Split]) -> list[str]:
        """Sentences about sizes of episodes that the data cannot give in these splits."""
        counts = self._counts()
        have = {split: (self._num_drawn(split), counts[split][1]) for split in splits}
        return count_problems(self.name, {split: self.shapes[split] for split in splits}, have)

    def check(self, splits: Sequence[Split]) -> None:
        raise_if(self._size_problems(splits))

    def prepare(self) -> None:
        """Fetch, verify and cache the data now rather than on first use."""
        _ = self._set

    def pictures(self) -> Pictures:
        """What an audit looks at, before it is resized and turned where that can be had."""
        found = self._set
        names = list(found.names or (f"class {number}" for number in range(len(found.sizes))))
        class_of = np.arange(len(names)).repeat(found.sizes)
        return Pictures(
            names=[f"{names[number]}, row {row}" for row, number in enumerate(class_of)],
            class_of=class_of,
            classes=names,
            partition=found.partition,
            turned=self.rotations,
            read=lambda row: Picture(found.images[row].permute(1, 2, 0).squeeze(-1).cpu().numpy()),
        )

    def unread(self) -> dict[str, list[str]]:
        """Names of what lies beside the data and is not read, by what they are."""
        return {}

    def spec(self, split: Split) -> TaskSpec:
        shape = self.shapes[split]
        return TaskSpec(
            kind="classification",
            objective=Classification(),
            num_outputs=shape.way,
            input_spec=self.input_spec,
            support_size=shape.way * shape.shot,
            query_size=shape.way * shape.query_shot,
            max_way=shape.way,
            num_train_classes=self._num_classes("train"),
        )

    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        key = task_keys(seed, split, first=first, count=count, device=self.device)
        support, query, query_labels = self._draw(split, key)
        return TaskBatch(
            support=Examples(
                self._images(split, support), self._support_labels(split, count), self._real(support)
            ),
            query=Examples(self._images(split, query), query_labels, self._real(query)),
            key=key,
        )

    def named(self, split: Split, *, seed: int, first: int, count: int) -> list[NamedTask] | None:
        if self._set.names is None:
            return None
        key = task_keys(seed, split, first=first, count=count, device=self.device)
        support, query, query_labels = self._draw(split, key)
        sides = ((support, self._support_labels(split, count)), (query, query_labels))
        names = self._index.names_of_split(split, self._turns(split))
        tasks = [
            [
                [names[row]._replace(label=label) for row, label in zip(*task, strict=True)]
                for task in zip(rows.tolist(), labels.tolist(), strict=True)
            ]
            for rows, labels in sides
        ]
        return [NamedTask(*both) for both in zip(*tasks, strict=True)]

    def recognised(self, row: Row, beside: Path) -> Row:
        return self._index.recognised(row)

    def gathered(self, parts: Sequence[Sequence[Row]]) -> Examples:
        width = max(map(len, parts))
        place, turn, y = (torch.zeros(len(parts), width, dtype=torch.int64) for _ in range(3))
        mask = torch.zeros(len(parts), width, dtype=torch.bool)
        for task, rows in enumerate(parts):
            size = len(rows)
            place[task, :size] = torch.tensor([self._index.place(row) for row in rows])
            turn[task, :size] = torch.tensor([row.turned // (360 // TURNS) for row in rows])
            y[task, :size] = torch.tensor([row.label for row in rows])
            mask[task, :size] = True
        pixels = self._set.images[place.flatten()]
        pixels = 255 - pixels if self.invert else pixels
        for turns in range(1, TURNS):
            some = turn.flatten() == turns
            pixels[some] = pixels[some].rot90(turns, (-2, -1))
        x = (pixels.to(self.device) / 255.0).unflatten(0, (len(parts), width))
        return Examples(x, y.to(self.device), mask.to(self.device))

    def content_sha256(self) -> str:
        names, contents = self._set.names, self._set.contents
        if names is None or contents is None:
            return self._set.sha256
        whole = json.dumps(sorted(zip(names, contents, strict=True)))
        return hashlib.sha256(whole.encode()).hexdigest()

    def _draw(self, split: Split, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers of support and query, and the labels of the queries, as `draw_episodes` says."""
        shape, store = self.shapes[split], self._stores[split]
        classes = self._draw_classes(split, key, store.num_classes, shape.way)
        return draw_episodes(key, store, classes, shot=shape.shot, query_shot=shape.query_shot)

    def _support_labels(self, split: Split, count: int) -> Tensor:
        shape = self.shapes[split]
        labels = torch.arange(shape.way, device=self.device).repeat_interleave(shape.shot)
        return labels.expand(count, -1)

    def _draw_classes(self, split: Split, key: Tensor, num_classes: int, way: int) -> Tensor:
        if self.rotations_as == "classes" or self._turns(split) == 1:
            return draw_classes(key, num_classes, way)
        unturned = num_classes // TURNS
        turns = fold(key[:, None], TURN_DRAW, torch.arange(way, device=key.device)) & (TURNS - 1)
        return draw_classes(key, unturned, way) + turns * unturned

    def examples(self, *, seed: int, first: int, count: int) -> Examples:
        store = self._stores["train"]
        rows = shuffled(seed, "train", first=first, count=count, total=len(store.rows), device=self.device)
        return Examples(self._images("train", rows), store.class_of_row[rows], self._real(rows))

    def protocol(self, split: Split) -> dict[str, Any]:
        shape = self.shapes[split]
        return {
            "data": self.name,
            "split": split,
            "way": shape.way,
            "shot": shape.shot,
            "query_shot": shape.query_shot,
            "num_classes": self._num_drawn(split),
            "augmentation": "rotations" if self.rotations else "none",
            "rotations": list(self.rotations),
            **self._rotation_facts(split),
            "invert": self.invert,
            "image_size": self.input_spec.shape[-1],
            **self._facts(),
        }

    def _rotation_facts(self, split: Split) -> dict[str, Any]:
        if split not in self.rotations:
            return {}
        if self.rotations_as == "tasks":
            return {"rotated_copies_are": "one turn per class and task"}
        share = share_with_twins(self._num_classes(split) // TURNS, self.shapes[split].way)
        return {
            "rotated_copies_are": "classes of their own",
            "share_of_tasks_with_rotated_twins": round(share, 4),
        }

    def members(self, split: Split) -> Members:
        names, contents, sizes = self._set.names, self._set.contents, self._set.sizes
        if names is None:
            return None
        # Classes without an image are all alike, which makes none of them the other.
        return [
            Member(self.name, names[n], contents[n] if contents and sizes[n] else None)
            for n in self._set.partition[split]
        ]

    def fingerprint(self) -> str:
        facts = {
            "content": self._set.sha256,
            "partition": {split: list(self._set.partition[split]) for split in SPLITS},
            "rotations": list(self.rotations),
            "invert": self.invert,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def preprocessing(self) -> dict[str, Any]:
        return {"resize": self.resize, "invert": self.invert}

    @cached_property
    def _set(self) -> ImageSet:
        return self._load()

    @cached_property
    def _index(self) -> ImageIndex:
        assert self._set.names is not None
        return ImageIndex(self.name, self._set, self.item_word)

    @cached_property
    def _stores(self) -> Stores:
        return Stores(self._store)

    def _store(self, split: Split) -> ClassStore:
        self.check((split,))
        size = torch.tensor(self._set.sizes)
        first = size.cumsum(0) - size
        rows = torch.cat(
            [torch.arange(int(first[c]), int(first[c] + size[c])) for c in self._set.partition[split]]
        )
        images = self._set.images[rows]
        images = 255 - images if self.invert else images
        turned = torch.cat([images.rot90(turn, (-2, -1)) for turn in range(self._turns(split))])
        sizes = size[torch.tensor(list(self._set.partition[split]))].repeat(self._turns(split))
        return ClassStore(turned.contiguous().to(self.device), sizes.to(self.device))

    def _turns(self, split: Split) -> int:
        return TURNS if split in self.rotations else 1

    def _num_classes(self, split: Split) -> int:
        return self._counts()[split][0] * self._turns(split)

    def _num_drawn(self, split: Split) -> int:
        """Classes that tasks are drawn from."""
        return self._counts()[split][0] if self.rotations_as == "tasks" else self._num_classes(split)

    def _images(self, split: Split, rows: Tensor) -> Tensor:
        """(*rows.shape, C, H, H) in [0, 1], in the default precision."""
        pixels = self._stores[split].rows.index_select(0, rows.flatten())
        return (pixels / 255.0).unflatten(0, rows.shape)

    @staticmethod
    def _real(rows: Tensor) -> Tensor:
        return torch.ones_like(rows, dtype=torch.bool)


class Stores(dict[Split, ClassStore]):
    """The examples of each split, gathered when they are first asked for: an evaluation needs one split of
    three.
    """

    def __init__(self, make: Callable[[Split], ClassStore]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, split: Split) -> ClassStore:
        self[split] = self.make(split)
        return self[split]


def share_with_twins(num_drawn: int, way: int) -> float:
    """Probability that `way` of 4·num_drawn classes, all equally likely, hold two turns of one of the
    num_drawn.
    """
    factors = ((TURNS * (num_drawn - k)) / (TURNS * num_drawn - k) for k in range(way))
    return 1.0 if way > num_drawn else 1.0 - math.prod(factors)


def episode_shapes(
    way: int, shot: int, query_shot: int, train: Mapping[str, int | None] | None
) -> dict[Split, EpisodeShape]:
    """Sizes per split: those of `train` where it gives them, else the common ones."""
    common = EpisodeShape(way, shot, query_shot)
    values, keys = [], []
    for name, value in (("way", way), ("shot", shot), ("query_shot", query_shot)):
        own = (train or {}).get(name)
        values.append(value if own is None else own)
        keys.append(f"data.{name}" if own is None else f"data.train.{name}")
    return {
        "train": EpisodeShape(values[0], values[1], values[2], (keys[0], keys[1], keys[2])),
        "val": common,
        "test": common,
    }


def count_problems(
    name: str, shapes: Mapping[Split, EpisodeShape], have: Mapping[Split, tuple[int, int]]
) -> list[str]:
    """Sizes that this data cannot give. have: number of classes and images of the smallest class, per
    split.
    """
    found: dict[tuple[str, str], list[str]] = {}  # (what is asked, what to change): what each split has
    for split, shape in shapes.items():
        num_classes, smallest = have[split]
        way, shot, query_shot = shape.keys
        if shape.way > num_classes:
            asked = f"{way}={shape.way} but ", f"; lower {way} or give the split more classes"
            found.setdefault(asked, []).append(f"split '{split}' of {name} has {num_classes} classes")
        if num_classes and shape.per_class > smallest:
            sizes = (
                f"{shot}={shape.shot} + {query_shot}={shape.query_shot} needs {shape.per_class} images "
                "per class"
            )
            asked = f"{sizes}, but ", f"; lower {shot} or {query_shot}"
            found.setdefault(asked, []).append(f"split '{split}' of {name} has a class with {smallest}")
    return [f"{before}{' and '.join(haves)}{after}" for (before, after), haves in found.items()]
