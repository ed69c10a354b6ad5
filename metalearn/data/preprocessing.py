"""A person's inputs as a run's model takes them, or a sentence that says what is wrong with them.

Shape letters: n rows, C channels, H height, W width of the run's images; h, w those of a person's image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metalearn.core import Inputs, InputSpec
from metalearn.data.files.image_file import decode, read_file
from metalearn.data.files.resize import FILTERS
from metalearn.errors import ConfigError, DataError

Picture = str | Path | Image.Image | np.ndarray | Tensor
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
)  # not all that Pillow knows: for some it starts other programs
BANDS = (1, 3, 4)  # grey, colour, colour with transparency


@dataclass(frozen=True)
class Preprocessing:
    """What the run's data did to its inputs. spec: what its model takes. resize, invert: of images.

    resize is None where the source does not say what it did; inputs are then given as the model takes them.
    """

    spec: InputSpec | dict[str, InputSpec]
    resize: str | None = None
    invert: bool = False

    @staticmethod
    def of(spec: InputSpec | dict[str, InputSpec], said: Mapping[str, Any]) -> Preprocessing:
        """said: by `Source.preprocessing`. ValueError for what is not known here, as inputs would come out
        wrong.
        """
        if not said:
            return Preprocessing(spec)
        if said.keys() != {"resize", "invert"}:
            names = ", ".join(sorted(map(str, said)))
            raise ValueError(f"preprocessing names {names}; expected resize and invert, or nothing")
        if not isinstance(said["resize"], str) or said["resize"] not in FILTERS:
            raise ValueError(
                f"preprocessing.resize is {said['resize']!r}; expected one of {', '.join(FILTERS)}"
            )
        if type(said["invert"]) is not bool:
            raise ValueError(f"preprocessing.invert is {said['invert']!r}; expected true or false")
        return Preprocessing(spec, **said)

    def __call__(self, inputs: Any) -> Inputs:
        """Model inputs (n, …), n ≥ 1, from a batch as a person has it; ConfigError names what does not fit.

        Images: paths, PIL images or uint8 arrays (h, w), (h, w, 3) or (3, h, w), resized and scaled as the
        run's own data. Floating-point arrays and tensors, and mappings of them, are taken to be model inputs
        already.
        """
        if isinstance(self.spec, dict):
            return _mapping(inputs, self.spec)
        if len(self.spec.shape) != 3:
            return _rows("inputs", inputs, self.spec)
        if isinstance(inputs, str | Path | Image.Image):
            raise ConfigError("a list of images is wanted, this is a single one; put it in brackets")
        if _is_floating(inputs):
            return self._floats(inputs)
        if isinstance(inputs, Mapping) or not hasattr(inputs, "__len__"):
            raise ConfigError(f"inputs are a list or an array of images, not {type(inputs).__name__}")
        if len(inputs) == 0:
            raise ConfigError("no inputs; give at least one")
        return torch.stack(
            [
                self._floats(picture[None])[0] if _is_floating(picture) else self.image(picture)
                for picture in inputs
            ]
        )

    def image(self, picture: Picture) -> Tensor:
        """One image of bytes as float (C, H, W) in [0, 1]."""
        assert isinstance(self.spec, InputSpec)
        channels, height, width = self.spec.shape
        if self.resize is None:
            unsaid = "the run's data do not say how they prepare pictures (Source.preprocessing)"
            raise ConfigError(f"{unsaid}; give floats of shape (n, {channels}, {height}, {width})")
        plain = _opened(picture).convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(plain.resize((width, height), FILTERS[self.resize])).reshape(
            height, width, channels
        )
        # Inverted as bytes, as sources do: 1 - x would differ from their pixels in the last bit.
        return torch.from_numpy(255 - pixels if self.invert else pixels.copy()).permute(2, 0, 1) / 255.0

    def _floats(self, images: Any) -> Tensor:
        """Images that are model inputs already, (n, C, H, W): never resized or inverted, so their range must
        fit too.
        """
        assert isinstance(self.spec, InputSpec)
        x = _rows(
            "inputs",
            images,
            self.spec,
            hint=". Floats are taken as they are; give images of another size as uint8 or files",
        )
        if not (x.min() >= 0 and x.max() <= 1):  # written so that NaN fails
            raise ConfigError(
                f"{_dtype(images)} images with {_range(x)}; expected [0, 1], and the run's own polarity; "
                "divide by 255?"
            )
        return x


def _mapping(inputs: Any, specs: dict[str, InputSpec]) -> dict[str, Tensor]:
    wanted = ", ".join(sorted(specs))
    if not isinstance(inputs, Mapping):
        raise ConfigError(f"inputs are a mapping of {wanted}, not {type(inputs).__name__}")
    if set(inputs) != set(specs):
        raise ConfigError(f"inputs have the keys {', '.join(sorted(map(str, inputs)))}; expected {wanted}")
    rows = {name: _rows(f"inputs[{name!r}]", inputs[name], specs[name]) for name in sorted(specs)}
    if len({len(x) for x in rows.values()}) > 1:
        raise ConfigError(
            f"inputs have {', '.join(f'{name}: {len(x)}' for name, x in rows.items())} rows; expected as "
            "many of each"
        )
    return rows


def _rows(what: str, values: Any, spec: InputSpec, hint: str = "") -> Tensor:
    """Values as a tensor (n, *spec.shape), n ≥ 1: floats, or int64 codes where the spec has categories."""
    expected = f"expected {'shape ' if not hint else ''}({', '.join(map(str, ('n', *spec.shape)))})"
    try:
        x = values.detach() if torch.is_tensor(values) else torch.as_tensor(np.asarray(values))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{what} are no array of numbers; {expected} ({error})") from error
    if x.ndim and len(x) == 0:
        raise ConfigError("no inputs; give at least one")
    if x.shape[1:] != spec.shape or x.ndim == 0:
        raise ConfigError(f"{what} of shape {tuple(x.shape)}; {expected.replace('shape ', '')}{hint}")
    if spec.num_categories is None:
        return x.to(torch.get_default_dtype())
    if x.is_floating_point() or x.min() < 0 or x.max() >= spec.num_categories:
        raise ConfigError(
            f"{what} of {_dtype(x)} with {_range(x)}; expected whole numbers from 0 to "
            f"{spec.num_categories - 1}"
        )
    return x.to(torch.int64)


def _is_floating(values: Any) -> bool:
    return (
        values.is_floating_point()
        if torch.is_tensor(values)
        else isinstance(values, np.ndarray) and values.dtype.kind == "f"
    )


def _dtype(values: Any) -> str:
    return str(values.dtype).removeprefix("torch.")


def _range(values: Any) -> str:
    return f"values {float(values.min()):g} to {float(values.max()):g}"


def _opened(picture: Any) -> Image.Image:
    """Eight bits per channel, without transparency, which is laid on white as a viewer would show it."""
    if isinstance(picture, str | Path):
        try:
            picture = decode(read_file(Path(picture)), FORMATS)
        except DataError as error:
            raise DataError(f"{picture} {error}") from error
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(_bytes(picture))
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture


def _bytes(picture: Any) -> np.ndarray:
    """An array or tensor of one image as uint8 (h, w), (h, w, 3) or (h, w, 4); channels may come first or
    last.
    """
    if not isinstance(picture, np.ndarray | Tensor):
        raise ConfigError(f"an image is a path, a PIL image or an array, not {type(picture).__name__}")
    pixels = picture.cpu().numpy() if torch.is_tensor(picture) else picture
    shape = pixels.shape
    if pixels.ndim == 3 and shape[2] not in BANDS and shape[0] in BANDS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in BANDS)):
        raise ConfigError(f"an image of shape {shape}; expected (h, w), (h, w, 3) or (3, h, w)")
    if pixels.dtype not in (np.uint8, np.bool_):
        raise ConfigError(
            f"an image of {pixels.dtype}{f' with {_range(pixels)}' if pixels.dtype.kind in 'iu' else ''}; "
            "expected uint8 (0 to 255), or floats in [0, 1] of the model's shape"
        )
    return np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
