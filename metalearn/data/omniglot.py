"""Omniglot (Lake, Salakhutdinov & Tenenbaum 2015): 1,623 characters of 50 alphabets, 20 drawings each.

Partitions: `vinyals` divides by alphabet (Vinyals et al. 2016, the split of Matching Networks and ProtoNet);
`random` divides shuffled characters 1100/100/423 (the MAML code), so that alphabets straddle the splits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from metalearn.core import Location, Row, Split, one_of
from metalearn.data.files.cache import CACHE, ORIGIN, cached, key_of
from metalearn.data.files.image_file import Picture, class_sha256, pixels_sha256
from metalearn.data.files.omniglot import (
    CONTENT,
    DRAWINGS,
    NUM_CHARACTERS,
    SIDE,
    Character,
    locate,
    read_drawings,
    verify,
)
from metalearn.data.files.resize import METHODS, resize_ink
from metalearn.data.images import ImageClasses, ImageSet
from metalearn.data.partition import random_partition
from metalearn.data.pictures import Pictures
from metalearn.errors import DataError
from metalearn.files import cache_folder

VERSION = 2  # of the preparation; part of the cache's name
RANDOM_SIZES: dict[Split, int] = {"train": 1100, "val": 100, "test": 423}
VINYALS_SIZES: dict[Split, int] = {"train": 1028, "val": 172, "test": 423}
VAL_ALPHABETS = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
TEST_ALPHABETS = {
    *("Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)"),
    *("Oriya", "Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"),
}
# The one alphabet that straddles: its characters 42-45 are test, the others train.
DRAWING = re.compile(r"(?P<character>\d{4})_(?P<number>\d\d)\.png")
STRADDLING, LAST_IN_TRAIN = "Gurmukhi", 41


class Omniglot(ImageClasses):
    """root: a folder that holds the archives or their extracted folders; read only, None means
    $METALEARN_DATA, else cache_dir.
    """

    name = "omniglot"
    locations = (Location("root"), CACHE)

    def __init__(
        self,
        *,
        device: torch.device,
        root: str | None,
        cache_dir: str | None,
        partition: str,
        partition_seed: int,
        resize: str,
        **images: Any,
    ) -> None:
        super().__init__(device=device, **images)
        self.root, self.folder = root, cache_folder(cache_dir)
        self.partition, self.partition_seed, self.resize = partition, partition_seed, resize
        one_of("data.partition", partition, ("vinyals", "random"))
        one_of("data.resize", resize, METHODS)

    @classmethod
    def audit(cls, root: str | None = None, cache_dir: str | None = None) -> str:
        cache = cache_folder(cache_dir)
        found = verify(locate(root, cache))
        missing = [part for part, path in found.items() if path is None]
        looked = root or os.environ.get("METALEARN_DATA") or cache
        fetch = f"(looked in {looked}); fetch it with: metalearn data prepare omniglot"
        if len(missing) == len(found):
            raise FileNotFoundError(f"not here {fetch}")
        if missing:
            raise DataError(f"{', '.join(missing)} is not here, though the rest of Omniglot is {fetch}")
        return ", ".join(f"{path} has the published sha256" for path in found.values())

    def pictures(self) -> Pictures:
        """The drawings as they were published; an audit reads no cache."""
        ink, characters = read_drawings(locate(self.root, self.folder), self.folder)
        packed = np.packbits(~ink.reshape(len(ink), -1), axis=1)  # an eighth of the memory
        names = [_name(character) for character in characters]

        def read(number: int) -> Picture:
            bits = np.unpackbits(packed[number], count=SIDE * SIDE)
            return Picture(bits.reshape(SIDE, SIDE) * np.uint8(255), "1")

        return Pictures(
            names=[f"{name}, drawing {drawer}" for name in names for drawer in range(1, DRAWINGS + 1)],
            class_of=np.arange(NUM_CHARACTERS).repeat(DRAWINGS),
            classes=names,
            partition=self._divided(characters),
            turned=self.rotations,
            read=read,
        )

    def _divided(self, characters: Sequence[Character]) -> dict[Split, list[int]]:
        if self.partition == "random":
            return random_partition(NUM_CHARACTERS, RANDOM_SIZES, self.partition_seed)
        return vinyals_partition(characters)

    def _counts(self) -> dict[Split, tuple[int, int]]:
        sizes = VINYALS_SIZES if self.partition == "vinyals" else RANDOM_SIZES
        return {split: (size, DRAWINGS) for split, size in sizes.items()}

    def _load(self) -> ImageSet:
        places = locate(self.root, self.folder)
        image_size = self.input_spec.shape[-1]
        name = f"omniglot-{key_of(version=VERSION, content=CONTENT, size=image_size, resize=self.resize)}"
        prepared = cached(self.folder, name, lambda: self._build(places, image_size))
        characters = [Character(*fields) for fields in prepared.facts["characters"]]
        names = [_name(character) for character in characters]
        contents = prepared.facts[ORIGIN]
        return ImageSet(
            prepared.tensors["images"],
            [DRAWINGS] * NUM_CHARACTERS,
            self._divided(characters),
            prepared.sha256,
            names,
            contents,
        )

    def _build(
        self, places: Sequence[Path], image_size: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        ink, characters = read_drawings(places, self.folder)
        drawings = [pixels_sha256(np.where(drawing, 0, 255).astype(np.uint8)) for drawing in ink]
        contents = [
            class_sha256(drawings[first : first + DRAWINGS]) for first in range(0, len(drawings), DRAWINGS)
        ]
        return {"images": resize_ink(ink, image_size, self.resize)}, {
            "characters": [list(c) for c in characters],
            ORIGIN: contents,
        }

    def recognised(self, row: Row, beside: Path) -> Row:
        """Also by the path of a file as the archives have it, …/<alphabet>/character07/0123_05.png."""
        path = PurePosixPath(str(row.item))
        drawing = DRAWING.fullmatch(path.name)
        if drawing is not None:
            number = int(drawing["character"]) - 1
            name = self._index.names[number] if 0 <= number < NUM_CHARACTERS else "no character"
            said = [row.owner, *(["/".join(path.parts[-3:-1])] if len(path.parts) >= 3 else [])]
            if any(owner not in ("", name) for owner in said):
                others = " or ".join(filter(None, said))
                raise DataError(f"{row.item} is a drawing of {name}, not of {others}")
            row = row._replace(owner=name, item=int(drawing["number"]))
        return super().recognised(row, beside)

    def groups(self) -> tuple[str, Mapping[str, str]]:
        names = self._set.names or ()
        return "alphabet", {name: name.partition("/")[0] for name in names}

    def _facts(self) -> dict[str, Any]:
        seed = {"partition_seed": self.partition_seed} if self.partition == "random" else {}
        return {"partition": self.partition, **seed, "resize": self.resize}


def _name(character: Character) -> str:
    return f"{character.alphabet}/character{character.number:02}"


def vinyals_partition(characters: Sequence[Character]) -> dict[Split, list[int]]:
    """Class numbers of each split, by alphabet."""
    partition: dict[Split, list[int]] = {"train": [], "val": [], "test": []}
    for number, character in enumerate(characters):
        late = character.alphabet == STRADDLING and character.number > LAST_IN_TRAIN
        split: Split = (
            "val"
            if character.alphabet in VAL_ALPHABETS
            else "test"
            if late or character.alphabet in TEST_ALPHABETS
            else "train"
        )
        partition[split].append(number)
    return partition
