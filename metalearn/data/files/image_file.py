"""Opening a file that may be a picture, a bomb, or no picture at all, and what tells one picture from
another.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from metalearn.errors import DataError

# Past this an image is refused, since a few kilobytes can unpack to gigabytes. 50 megapixels exceed most
# cameras.
MAX_PIXELS = 50_000_000
MAX_BYTES = 256 << 20
# of a JPEG: a scan of a few bytes costs a pass over all pixels, and a progressive picture has about ten
MAX_SCANS = 100
JPEG, SCAN = b"\xff\xd8", b"\xff\xda"


class Picture(NamedTuple):
    """pixels: uint8 (h, w) or (h, w, 3), before they are resized. mode: Pillow's word for how the file holds
    them. traits: what is odd about the file.
    """

    pixels: np.ndarray
    mode: str = "L"
    traits: tuple[str, ...] = ()


def read_file(path: Path) -> bytes:
    """The bytes of an image file. Raises DataError without the name of the file, which the caller knows
    better.
    """
    try:
        if not path.is_file():
            raise DataError(
                "is not a readable image (it is no file)"
                if path.exists()
                else "is not a readable image (it does not exist)"
            )
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"has {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise DataError(f"is not a readable image ({error})") from error


def decode(content: bytes, formats: tuple[str, ...]) -> Image.Image:
    """The picture, its pixels unpacked. Raises DataError, as `read_file` does, for what is none or has too
    many pixels.
    """
    if content.startswith(JPEG) and content.count(SCAN) > MAX_SCANS:
        raise DataError(f"is a JPEG of {content.count(SCAN)} scans; at most {MAX_SCANS} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            image = Image.open(io.BytesIO(content), formats=formats)
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read")
        image.load()
        return image
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"is not a readable image (it is no {' or '.join(formats)})") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"has far more than the {MAX_PIXELS} pixels that are read") from error
    except (
        Exception
    ) as error:  # Pillow raises whatever its parsers stumble over: struct.error, KeyError, zlib.error …
        raise DataError(f"is not a readable image ({error or type(error).__name__})") from error


def pixels_sha256(pixels: np.ndarray) -> str:
    """Of uint8 (h, w) or (h, w, 3) as a file holds them, however it packs them: three equal channels count as
    one.
    """
    if pixels.ndim == 3 and (pixels[..., :1] == pixels).all():
        pixels = pixels[..., 0]
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def class_sha256(pictures: Iterable[str]) -> str:
    """Of a class, from the sha256 of its pictures in any order: what their files are called says nothing."""
    return hashlib.sha256("".join(sorted(pictures)).encode()).hexdigest()
