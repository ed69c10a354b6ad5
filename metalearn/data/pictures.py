"""Pictures as they lie on the disk, and what tells them apart: sha256, a thumbnail, size, mode.

Shape letters: N pictures; h, w height and width of one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from metalearn.core import SPLITS, Split
from metalearn.data.files.image_file import Picture, pixels_sha256
from metalearn.errors import DataError

log = logging.getLogger(__name__)

SIDE = 32  # of a thumbnail, in pixels


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pictures of a source, sorted by class, rotated copies aside.

    names: of each picture. class_of: its class number. classes: their names. partition: class numbers per
    split. turned: splits that hold their classes in four rotations. read: a picture by its number; DataError.
    """

    names: Sequence[str]
    class_of: np.ndarray
    classes: Sequence[str]
    partition: Mapping[Split, Sequence[int]]
    turned: Sequence[Split]
    read: Callable[[int], Picture]

    def split_of_class(self) -> np.ndarray:
        """Index into SPLITS of each class, int8; -1: it is in none."""
        found = np.full(len(self.classes), -1, dtype=np.int8)
        for number, split in enumerate(SPLITS):
            found[list(self.partition[split])] = number
        return found


@dataclass(frozen=True, eq=False)
class Prints:
    """Of N pictures. sha256: of the pixels, "" if it cannot be read. thumbs: grey, uint8 (N, SIDE, SIDE).
    shapes: int64 (N, 2), height and width. traits, modes: numbers of the pictures with it.
    """

    sha256: list[str]
    thumbs: np.ndarray
    shapes: np.ndarray
    unreadable: dict[int, str] = field(default_factory=dict)
    traits: dict[str, list[int]] = field(default_factory=dict)
    modes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def flat(self) -> np.ndarray:
        """bool (N,): a picture of one grey level, which is like any other of its kind."""
        pixels = self.thumbs.reshape(len(self.thumbs), -1)
        return pixels.max(1, initial=0) == pixels.min(1, initial=255)


def take_prints(pictures: Pictures) -> Prints:
    """Every picture is read once, and forgotten but for its print."""
    total = len(pictures.names)
    prints = Prints(
        [""] * total, np.zeros((total, SIDE, SIDE), dtype=np.uint8), np.zeros((total, 2), dtype=np.int64)
    )
    for number in range(total):
        if number % 10_000 == 9_999:
            log.info("read %d of %d pictures", number + 1, total)
        try:
            picture = pictures.read(number)
        except DataError as error:
            prints.unreadable[number] = str(error)
            continue
        prints.sha256[number] = pixels_sha256(picture.pixels)
        prints.thumbs[number] = thumbnail(picture.pixels)
        prints.shapes[number] = picture.pixels.shape[:2]
        prints.modes.setdefault(picture.mode, []).append(number)
        for trait in picture.traits:
            prints.traits.setdefault(trait, []).append(number)
    return prints


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """The whole picture as a grey square, uint8 (SIDE, SIDE): means of areas, so that thin lines stay."""
    grey = Image.fromarray(pixels).convert("L")
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
