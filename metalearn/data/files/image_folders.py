"""Class folders of image files: which there are, and their pixels."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metalearn.core import SPLITS, Split
from metalearn.data.files.image_file import decode, pixels_sha256, read_file
from metalearn.data.files.resize import FILTERS
from metalearn.errors import DataError

log = logging.getLogger(__name__)

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
NAMED = 5  # images that cannot be used are named together, and after so many reading stops
LAYOUT = "expected ROOT/<class>/*.png|jpg|jpeg, or ROOT/train, ROOT/val and ROOT/test with such class folders"


class ClassFolder(NamedTuple):
    """name: of the folder. split: of the folder above it, None where there is no such layout. files:
    sorted.
    """

    name: str
    split: Split | None
    files: list[Path]


def find_root(root: str | None) -> Path:
    """The folder of images. Raises DataError, with the way out, if it is not there."""
    if not root:
        shared = os.environ.get("METALEARN_DATA")
        within = (
            f" (METALEARN_DATA={shared} is the folder of all data sets; name the one in it)" if shared else ""
        )
        what = "data.root is not set and image_folder has no data of its own"
        raise DataError(f"{what}; set data.root=ROOT{within}, {LAYOUT}")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(f"data.root={root} {'is a file' if path.exists() else 'does not exist'}; {LAYOUT}")
    return path


def class_folders(root: Path) -> list[ClassFolder]:
    """All classes under root, sorted. Raises DataError if there are none, or if a class stands in two
    splits.
    """
    try:
        top = {folder.name: folder for folder in _folders(root)}
        if all(split in top for split in SPLITS):
            found = [
                ClassFolder(folder.name, split, _images(folder))
                for split in SPLITS
                for folder in _folders(top[split])
            ]
        else:
            found = [ClassFolder(name, None, _images(folder)) for name, folder in top.items()]
    except OSError as error:
        raise DataError(f"data.root={root} cannot be read ({error})") from error
    if not any(folder.files for folder in found):
        raise DataError(f"data.root={root} holds no images in class folders; {LAYOUT}")
    names = [folder.name for folder in found]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(
            f"data.root={root} has class {twice[0]!r} in two splits; splits never share a class, so rename "
            "or remove one"
        )
    return found


def read_images(files: Sequence[Path], *, size: int, channels: int, resize: str) -> tuple[Tensor, list[str]]:
    """uint8 (N, C, H, H), and the sha256 of each picture as its file holds it.

    Raises DataError that names the first files, at most NAMED of them, that cannot be read.
    """
    images = torch.empty(len(files), channels, size, size, dtype=torch.uint8)
    contents, problems = [], []
    for number, file in enumerate(files):
        try:
            picture = _opened(file)
        except DataError as error:
            problems.append(str(error))
            if len(problems) == NAMED:
                break
            continue
        contents.append(pixels_sha256(raw_pixels(picture)))
        resized = picture.convert("L" if channels == 1 else "RGB").resize((size, size), FILTERS[resize])
        images[number] = torch.from_numpy(np.array(resized)).reshape(size, size, channels).permute(2, 0, 1)
        if number % 10_000 == 9_999:
            log.info("read %d of %d images", number + 1, len(files))
    if problems:
        raise DataError(_together(problems))
    return images, contents


def _together(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"{problems[0]}. Nothing was trained"
    many = (
        f"at least {NAMED} images cannot be used (reading stopped there)" if len(problems) == NAMED else None
    )
    heading = (
        f"{many or f'{len(problems)} images cannot be used'}; repair or remove them. Nothing was trained"
    )
    return "\n".join([heading, *(f"  {problem}" for problem in problems)])


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _opened(file: Path) -> Image.Image:
    try:
        return plain(decode(read_file(file), ("PNG", "JPEG")))
    except DataError as error:
        raise DataError(f"{file} {error}; repair or remove it") from error


def plain(image: Image.Image) -> Image.Image:
    """Eight bits per channel, without transparency, which is laid on white as a viewer would show it."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def raw_pixels(image: Image.Image) -> np.ndarray:
    """uint8 (h, w) or (h, w, 3), before it is resized."""
    return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
