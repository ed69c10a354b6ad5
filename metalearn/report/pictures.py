"""Pictures of tasks with predictions, small enough that a page of many runs can be sent by mail."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

from PIL import Image

from metalearn.report.page import picture
from metalearn.report.rows import Row
from metalearn.rundir.registry import MAX_PICTURE

WIDEST = 1000  # pixels
COLOURS = 128
MOST_BYTES = 5 << 20  # of all pictures of a page
MISTAKES = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


class Shown(NamedTuple):
    """address: the picture itself, empty where there is none, for the reason that caption gives."""

    address: str
    caption: str


class Album:
    """Takes pictures until the page is full, and says of the others where they lie."""

    def __init__(self) -> None:
        self.left = MOST_BYTES

    def of(self, row: Row) -> Shown | None:
        """The worst tasks of a row's first run, or else some of its tasks; None where nothing was drawn."""
        worst = row.first.file("worst", "png")
        some = row.first.folder / "plots" / "episodes.png"
        path = next((path for path in (worst, some) if path.is_file()), None)
        if path is None:
            return None
        what = "The tasks on which it is worst" if path == worst else "Some tasks"
        caption = f"{what}, seed {row.seeds[0]}: supports, queries and predictions."
        try:
            content = shrunk(row.first.judged.read(path, MAX_PICTURE))
        except MISTAKES as error:
            return Shown("", f"{path} cannot be shown: {' '.join(str(error).split())[:200]}")
        if len(content) > self.left:
            return Shown("", f"{caption} The page is full; the picture is {path}.")
        self.left -= len(content)
        return Shown(picture(content), caption)


def shrunk(content: bytes) -> bytes:
    """A PNG at most WIDEST pixels wide, with few colours. Raises one of MISTAKES for a file that is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            small = image.convert("RGB")
    if small.width > WIDEST:
        small = small.resize(
            (WIDEST, max(1, round(small.height * WIDEST / small.width))), Image.Resampling.LANCZOS
        )
    file = io.BytesIO()
    small.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()
