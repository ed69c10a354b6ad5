"""Omniglot on disk: finding it, reading it out of archives or folders, and proving that it is Omniglot.

What counts is the content: one sha256 over the packed ink of every drawing, character after character. So
the official archives, archives that were packed again and extracted folders are all welcome, and nothing
else is. Archives are read in memory and never unpacked to disk.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metalearn.data.files.archive import SUFFIXES, Limits, read_entries
from metalearn.data.files.download import download
from metalearn.data.files.image_file import decode
from metalearn.errors import DataError

log = logging.getLogger(__name__)

DRAWINGS, SIDE = 20, 105
NUM_CHARACTERS = 1623
# sha256 over numpy.packbits(ink), image after image, in the order of characters and drawings.
CONTENT = {
    "images_background": "0ab79f985d54d682c6b0648ec00ec1a97555a19777e32d86acce0e07da605341",
    "images_evaluation": "8b30138357c6f079e1a4a87405d5cda8999b6036890a8aa2fefafcd69824c707",
}
NUM_IMAGES = {"images_background": 964 * DRAWINGS, "images_evaluation": 659 * DRAWINGS}
FOLDERS = ("", "omniglot", "omniglot-py")  # the last is torchvision's
MEMBER = re.compile(r"([^/]+)/character(\d\d)/(\d{4})_(\d\d)\.png")
MAX_IMAGE_BYTES = 1 << 16  # official drawings take 150-700 bytes
MAX_TOTAL_BYTES = 100 << 20  # of all drawings of a part, and of whatever else lies in its archive
MAX_FOLDERS = 5000


class Character(NamedTuple):
    """number: within its alphabet, from 1."""

    alphabet: str
    number: int


def locate(root: str | None, cache: Path) -> list[Path]:
    """Folders to look in, best first. Raises DataError if the root that was asked for is not a folder."""
    chosen = root if root is not None else os.environ.get("METALEARN_DATA")
    if not chosen:
        return [cache]
    origin = "data.root" if root is not None else "METALEARN_DATA"
    path = Path(chosen).expanduser()
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise DataError(
            f"{origin}={chosen} {what}; expected a folder that holds omniglot/images_background.zip, or "
            "leave it out to download"
        )
    return [path, cache]


def read_drawings(places: Sequence[Path], cache: Path) -> tuple[np.ndarray, list[Character]]:
    """Verified ink, booleans (1623·20, 105, 105), and the characters in order. Downloads into `cache` what
    lies nowhere.
    """
    ink, characters = [], []
    for part in CONTENT:
        path = _find(places, part) or fetch(part, cache)
        log.info("reading %s", path)
        drawings = sorted(_members(path, part))
        ink.append(_verified(drawings, part, path))
        characters += [Character(d.alphabet, d.number) for d in drawings[::DRAWINGS]]
    return np.concatenate(ink), characters


def verify(places: Sequence[Path]) -> dict[str, Path | None]:
    """Where each part of Omniglot lies, None if nowhere. DataError for one whose content is not what was
    published.
    """
    found = {part: _find(places, part) for part in CONTENT}
    for part, path in found.items():
        if path is not None:
            _verified(sorted(_members(path, part)), part, path)
    return found


class Drawing(NamedTuple):
    """One image file. Sorts by character, then drawer. label: where it came from, for messages."""

    character: int
    drawer: int
    alphabet: str
    number: int
    label: str
    content: bytes


def fetch(part: str, cache: Path) -> Path:
    """The official archive, downloaded into the cache folder and checked against its published md5."""
    # The address and the md5 are torchvision's, so that there is one place to correct them.
    from torchvision.datasets import Omniglot as Official

    target = cache / "omniglot" / f"{part}.zip"
    archives = " and ".join(f"{Official.download_url_prefix}/{name}.zip" for name in CONTENT)
    help_text = (
        f"Omniglot is not there and could not be downloaded. Fetch {archives} on another machine and put "
        "both, "
        "as they are, into a folder; then run again with data.root=FOLDER (or put them into "
        f"{target.parent}). "
        "data=glyphs needs no download at all."
    )
    download(
        f"{Official.download_url_prefix}/{part}.zip",
        target,
        checksum=f"md5:{Official.zips_md5[part]}",
        help_text=help_text,
    )
    return target


def _find(places: Sequence[Path], part: str) -> Path | None:
    """The first archive or extracted folder of this part."""
    for place in places:
        for folder in FOLDERS:
            for name in (*(f"{part}{suffix}" for suffix in SUFFIXES), part):
                path = place / folder / name
                if path.is_file() if name != part else path.is_dir():
                    return path
    return None


def _members(path: Path, part: str) -> Iterator[Drawing]:
    """Raises DataError if there are more than there should be; too few are found by `_verified`."""
    found = _from_folder(path) if path.is_dir() else _from_archive(path, part)
    for number, drawing in enumerate(found, 1):
        if number > NUM_IMAGES[part]:
            raise DataError(
                f"{path} holds more than the {NUM_IMAGES[part]} images of {part}; it was not used"
            )
        yield drawing


def _from_folder(path: Path) -> Iterator[Drawing]:
    for file in path.glob("*/character*/*.png"):
        if file.is_file():  # to read from a pipe would never end
            content = file.read_bytes() if file.stat().st_size <= MAX_IMAGE_BYTES else b""
            yield _drawing(file.relative_to(path).as_posix(), str(file), content)


def _from_archive(path: Path, part: str) -> Iterator[Drawing]:
    for name, content in read_entries(
        path, Limits(NUM_IMAGES[part] + MAX_FOLDERS, MAX_IMAGE_BYTES, MAX_TOTAL_BYTES)
    ):
        if name.endswith(".png"):
            yield _drawing(name.removeprefix(f"{part}/"), f"{path}: {name}", content)


def _drawing(name: str, label: str, content: bytes) -> Drawing:
    match = MEMBER.fullmatch(name)
    if match is None:
        raise DataError(
            f"{label} is not named like an Omniglot drawing; expected <Alphabet>/characterNN/XXXX_YY.png"
        )
    alphabet, number, character, drawer = match.groups()
    return Drawing(int(character), int(drawer), alphabet, int(number), label, content)


def _verified(drawings: Sequence[Drawing], part: str, path: Path) -> np.ndarray:
    """Ink (N, 105, 105) of sorted drawings. Raises DataError unless it is exactly this part of Omniglot."""
    if len(drawings) != NUM_IMAGES[part]:
        raise DataError(
            f"{path} holds {len(drawings)} drawings, but {part} has {NUM_IMAGES[part]}; it is incomplete and "
            "was not used"
        )
    ink = np.stack([_decode(drawing) for drawing in drawings])
    packed = np.packbits(ink.reshape(len(ink), -1), axis=1)
    sha256 = hashlib.sha256(packed.tobytes()).hexdigest()
    if sha256 != CONTENT[part]:
        raise DataError(
            f"{path} is not the Omniglot that was published: its content has sha256 {sha256}, expected "
            f"{CONTENT[part]}; it was not used"
        )
    return ink


def _decode(drawing: Drawing) -> np.ndarray:
    try:
        image = decode(drawing.content, ("PNG",))
    except DataError as error:
        raise DataError(f"{drawing.label} {error}; nothing was used") from error
    if image.size != (SIDE, SIDE):
        raise DataError(
            f"{drawing.label} has {image.size[0]}x{image.size[1]} pixels; an Omniglot drawing has "
            f"{SIDE}x{SIDE}"
        )
    return np.asarray(image.convert("L")) < 128
