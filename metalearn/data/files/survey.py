"""What is odd about a folder of pictures and its files, beyond what can be read or not."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from metalearn.core import SPLITS
from metalearn.data.files.image_file import MAX_BYTES, Picture, decode, read_file
from metalearn.data.files.image_folders import SUFFIXES, plain, raw_pixels
from metalearn.errors import DataError

SUMS = "SHA256SUMS"  # as the program sha256sum writes it
LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
ORIENTATION, UPRIGHT = 0x0112, 1  # of EXIF
LONG = 3  # a side so many times the other is squashed beyond recognition
# Suffixes that pictures have and the loader does not read.
OTHER_PICTURES = {
    *(".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".jp2", ".avif", ".heic", ".heif"),
    *(".ppm", ".pgm", ".svg", ".dng", ".raw"),
}
TURNED = "turned only by its EXIF tag, which is not followed"
UNTOLD = "with EXIF data that cannot be read"
ANIMATED = "animated or of several pictures, of which the first counts"
MISNAMED = "of another format than its name says"
SQUASHED = f"more than {LONG} times as long as wide, and squashed to a square"
TRANSPARENT = "transparent, and laid on white"
DEEP = "of 16 or more bits, cut to 8"
LINKED = "a link to a file outside of the root"
HALF = "taken for a class, since not all of train, val and test are there"


def examine(file: Path, root: Path) -> Picture:
    """The pixels as they are trained on, before resizing, and what is odd about the file. DataError as
    `image_file.decode`.
    """
    content = read_file(file)
    if not content:
        raise DataError("is empty (0 bytes)")
    image = decode(content, ("PNG", "JPEG"))
    return Picture(raw_pixels(plain(image)), image.mode, tuple(_traits(image, file, root)))


def _traits(image: Image.Image, file: Path, root: Path) -> Iterator[str]:
    upright = _upright(image)
    if not upright:
        yield UNTOLD if upright is None else TURNED
    if getattr(image, "n_frames", 1) > 1:
        yield ANIMATED
    # A JPEG of several pictures is an MPO to Pillow.
    if {"MPO": "JPEG"}.get(image.format or "", image.format) != SUFFIXES[file.suffix.lower()]:
        yield MISNAMED
    if max(image.size) > LONG * min(image.size):
        yield SQUASHED
    if "A" in image.getbands() or "transparency" in image.info:
        yield TRANSPARENT
    if image.mode.startswith(("I", "F")):
        yield DEEP
    if file.is_symlink() and not file.resolve().is_relative_to(root.resolve()):
        yield LINKED


def _upright(image: Image.Image) -> bool | None:
    """Whether the file asks no viewer to turn the picture; None: nobody can tell."""
    try:
        return bool(image.getexif().get(ORIENTATION, UPRIGHT) == UPRIGHT)
    except Exception:  # noqa: BLE001 - Pillow raises whatever its parsers stumble over
        return None


def unread(root: Path) -> dict[str, list[str]]:
    """What lies under the root and is not read: names below it, by what they are."""
    found: dict[str, list[str]] = {}
    for path, what in _unread(root):
        found.setdefault(what, []).append(str(path.relative_to(root)))
    return found


def _unread(root: Path) -> Iterator[tuple[Path, str]]:
    there = [root / split for split in SPLITS if (root / split).is_dir()]
    in_splits = len(there) == len(SPLITS)
    if not in_splits:
        yield from ((path, HALF) for path in there)
    for entry in sorted(root.iterdir()):
        if not in_splits or not entry.is_dir() or entry.name.startswith("."):
            yield from _below_top(entry)
        elif entry not in there:
            yield entry, "a folder beside train, val and test"
    for split in there if in_splits else []:
        for entry in sorted(split.iterdir()):
            yield from _below_top(entry)


def _below_top(entry: Path) -> Iterator[tuple[Path, str]]:
    """A class folder and what lies in it, or something where only class folders are looked for."""
    if entry.name.startswith(".") or not entry.is_dir():
        yield entry, _why_unread(entry) or "a picture outside of the class folders"
        return
    for inner in sorted(entry.iterdir()):
        if what := _why_unread(inner):
            yield inner, what


def _why_unread(entry: Path) -> str | None:
    """None: the loader reads it as a picture of its class."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_symlink() and not entry.exists():
        return "a link that leads nowhere"
    if entry.is_dir():
        return "a folder within a class folder"
    if not entry.is_file():
        return "neither a file nor a folder"
    suffix = entry.suffix.lower()
    if suffix in OTHER_PICTURES:
        return f"a picture of a format that is not read ({suffix})"
    return None if suffix in SUFFIXES else "no picture"


def verify_sums(root: Path) -> str | None:
    """What the file SHA256SUMS of the root or of the folder above says of the files under the root; None if
    there is none. DataError: files are not what they were, or are missing.
    """
    root = Path(os.path.abspath(root))
    path = next((p for folder in (root, root.parent) if (p := folder / SUMS).is_file()), None)
    sums = {} if path is None else _sums(path, root)
    if not sums:
        return None
    missing = [str(file) for file in sums if not file.exists()]
    wrong = [str(file) for file, sha256 in sums.items() if file.exists() and _sha256(file) != sha256]
    problems = [
        f"{len(names)} of the {len(sums)} files in {path} {what}: {', '.join(names[:3])}"
        for names, what in ((wrong, "have another sha256"), (missing, "are missing"))
        if names
    ]
    if problems:
        raise DataError("; ".join(problems))
    return f"{len(sums)} files have the sha256 of {path}"


def _sums(path: Path, root: Path) -> dict[Path, str]:
    """Files under the root and their sha256; lines of another form are another program's."""
    lines = map(LINE.fullmatch, path.read_text(encoding="utf-8", errors="replace").splitlines())
    # `..` is taken out by name and not on the disk, so that a link counts where it stands.
    files = {Path(os.path.normpath(path.parent / line[2])): line[1].lower() for line in lines if line}
    return {file: sha256 for file, sha256 in files.items() if file.is_relative_to(root)}


def _sha256(file: Path) -> str:
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        return "not read"
    return hashlib.sha256(file.read_bytes()).hexdigest()
