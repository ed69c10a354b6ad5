"""Shrinking drawings: nearest pixel, area average, or Lanczos.

Pillow ignores the filter on 1-bit images and takes the nearest pixel, which is what most published Omniglot
code got whatever it asked for. Here `area` and `lanczos` work on grey levels and really smooth.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

METHODS = ("nearest", "area", "lanczos")
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize_ink(ink: np.ndarray, image_size: int, method: str) -> Tensor:
    """uint8 (N, 1, H, H), 0 ink and 255 paper, from booleans (N, h, h) that are True where there is ink."""
    if method == "nearest":
        # Pillow's rule: the source pixel under the centre of the target pixel.
        centre = ((np.arange(image_size) + 0.5) * (ink.shape[-1] / image_size)).astype(np.int64)
        images = np.where(ink[:, centre[:, None], centre], 0, 255).astype(np.uint8)
    else:
        paper = np.where(ink, 0, 255).astype(np.uint8)
        images = np.stack(
            [
                np.asarray(Image.fromarray(drawing).resize((image_size, image_size), FILTERS[method]))
                for drawing in paper
            ]
        )
    return torch.from_numpy(images)[:, None]
