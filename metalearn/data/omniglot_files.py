"""Omniglot on disk: finding it, reading it out of archives or folders, and proving that it is Omniglot.

What counts is the content: one sha256 over the packed ink of every drawing, character after character. So
the official archives, archives that were packed again and extracted folders are all welcome, and nothing
else is. Archives are read in memory and never unpacked to disk.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from metalearn.data.download import download
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
            f"{origin}={chosen} {what}; expected a folder that holds omniglot/images_background.zip, or leave it out to download"
        )
    return [path, cache]


def read_drawings(places: Sequence[Path], cache: Path) -> tuple[np.ndarray, list[Character]]:
    """Verified ink, booleans (1623·20, 105, 105), and the characters in order. Downloads into `cache` what lies nowhere."""
    ink, characters = [], []
    for part in CONTENT:
        path = _find(places, part) or fetch(part, cache)
        log.info("reading %s", path)
        drawings = sorted(_members(path, part))
        ink.append(_verified(drawings, part, path))
        characters += [Character(d.alphabet, d.number) for d in drawings[::DRAWINGS]]
    return np.concatenate(ink), characters


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
        f"Omniglot is not there and could not be downloaded. Fetch {archives} on another machine and put both, "
        f"as they are, into a folder; then run again with data.root=FOLDER (or put them into {target.parent}). "
        "data=glyphs needs no download at all."
    )
    download(f"{Official.download_url_prefix}/{part}.zip", target, md5=Official.zips_md5[part], help_text=help_text)
    return target


def _find(places: Sequence[Path], part: str) -> Path | None:
    """The first archive or extracted folder of this part."""
    for place in places:
        for folder in FOLDERS:
            for path in (place / folder / f"{part}.zip", place / folder / part):
                if path.exists():
                    return path
    return None


def _members(path: Path, part: str) -> Iterator[Drawing]:
    if path.is_dir():
        yield from _from_folder(path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _from_archive(archive, path, part)
    # NotImplementedError and RuntimeError are zipfile's words for a compression or an encryption that a damaged header claims.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or incomplete ({error}); it was not used. Delete it, or replace it by the official archive"
        ) from error


def _from_folder(path: Path) -> Iterator[Drawing]:
    for file in path.glob("*/character*/*.png"):
        yield _drawing(file.relative_to(path).as_posix(), str(file), file.read_bytes() if file.stat().st_size <= MAX_IMAGE_BYTES else b"")


def _from_archive(archive: zipfile.ZipFile, path: Path, part: str) -> Iterator[Drawing]:
    members = [info for info in archive.infolist() if not info.is_dir() and info.filename.endswith(".png")]
    if len(members) > NUM_IMAGES[part]:
        raise DataError(f"{path} holds {len(members)} images; {part} has {NUM_IMAGES[part]}. It was not used")
    for info in archive.infolist():
        if info.filename.startswith(("/", "\\")) or ".." in info.filename.replace("\\", "/").split("/"):
            raise DataError(f"{path} holds a member with the path {info.filename!r}, which leaves the archive; it was not used")
    for info in members:
        if info.file_size > MAX_IMAGE_BYTES:
            raise DataError(
                f"{path}: {info.filename} unpacks to {info.file_size} bytes; a drawing has at most {MAX_IMAGE_BYTES}. It was not used"
            )
        yield _drawing(info.filename.removeprefix(f"{part}/"), f"{path}: {info.filename}", archive.read(info))


def _drawing(name: str, label: str, content: bytes) -> Drawing:
    match = MEMBER.fullmatch(name)
    if match is None:
        raise DataError(f"{label} is not named like an Omniglot drawing; expected <Alphabet>/characterNN/XXXX_YY.png")
    alphabet, number, character, drawer = match.groups()
    return Drawing(int(character), int(drawer), alphabet, int(number), label, content)


def _verified(drawings: Sequence[Drawing], part: str, path: Path) -> np.ndarray:
    """Ink (N, 105, 105) of sorted drawings. Raises DataError unless it is exactly this part of Omniglot."""
    if len(drawings) != NUM_IMAGES[part]:
        raise DataError(f"{path} holds {len(drawings)} drawings, but {part} has {NUM_IMAGES[part]}; it is incomplete and was not used")
    ink = np.stack([_decode(drawing) for drawing in drawings])
    packed = np.packbits(ink.reshape(len(ink), -1), axis=1)
    sha256 = hashlib.sha256(packed.tobytes()).hexdigest()
    if sha256 != CONTENT[part]:
        raise DataError(
            f"{path} is not the Omniglot that was published: its content has sha256 {sha256}, expected {CONTENT[part]}; it was not used"
        )
    return ink


def _decode(drawing: Drawing) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(drawing.content), formats=["PNG"]) as image:
            if image.size != (SIDE, SIDE):
                raise DataError(f"{drawing.label} has {image.size[0]}x{image.size[1]} pixels; an Omniglot drawing has {SIDE}x{SIDE}")
            return np.asarray(image.convert("L")) < 128
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{drawing.label} is not a readable PNG ({error}); nothing was used") from error
