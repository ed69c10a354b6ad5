"""Glyphs: procedural characters, a stand-in for Omniglot that needs no download.

A character is one to four smooth strokes; a drawer redraws it with trembling control points, a slant, a
stretch, a shift and a pen of its own. Everything is a pure function of data.seed.
Shape letters: C characters, D drawings, S strokes, P points of a stroke.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from metalearn.core import Split, one_of
from metalearn.data.files.cache import CACHE, cached, key_of
from metalearn.data.images import ImageClasses, ImageSet
from metalearn.data.partition import random_partition, split_sizes
from metalearn.files import cache_folder
from metalearn.hashing import fold, normal, uniform

VERSION = 2  # of the drawing code; part of the cache's name
FRACTIONS = (2 / 3, 1 / 12, 1 / 4)
STROKES, CONTROLS, POINTS = 4, 4, 32
BLOCK = 20  # characters drawn at once: what fits a core's cache is drawn three times as fast


class Glyphs(ImageClasses):
    """num_classes characters of num_drawings drawings, black ink on white before `invert`."""

    name = "glyphs"
    locations = (CACHE,)

    def __init__(
        self,
        *,
        device: torch.device,
        cache_dir: str | None,
        num_classes: int,
        num_drawings: int,
        seed: int,
        partition: str,
        partition_seed: int,
        **images: Any,
    ) -> None:
        super().__init__(device=device, **images)
        self.folder = cache_folder(cache_dir)
        self.num_classes, self.num_drawings = num_classes, num_drawings
        self.seed, self.partition, self.partition_seed = seed, partition, partition_seed
        one_of("data.partition", partition, ("random",))  # all characters are alike

    def _counts(self) -> dict[Split, tuple[int, int]]:
        return {
            split: (size, self.num_drawings)
            for split, size in split_sizes(self.num_classes, FRACTIONS).items()
        }

    def _load(self) -> ImageSet:
        image_size = self.input_spec.shape[-1]
        key = key_of(
            version=VERSION,
            seed=self.seed,
            classes=self.num_classes,
            drawings=self.num_drawings,
            size=image_size,
        )
        name = f"glyphs-{key}"
        prepared = cached(
            self.folder,
            name,
            lambda: ({"images": draw_glyphs(self.num_classes, self.num_drawings, self.seed, image_size)}, {}),
        )
        partition = random_partition(
            self.num_classes, split_sizes(self.num_classes, FRACTIONS), self.partition_seed
        )
        names = [f"seed={self.seed}/character={number}" for number in range(self.num_classes)]
        return ImageSet(
            prepared.tensors["images"],
            [self.num_drawings] * self.num_classes,
            partition,
            prepared.sha256,
            names,
        )

    def content_sha256(self) -> str:
        """Of the strokes, whatever the size at which they are drawn."""
        strokes = json.dumps([VERSION, self.seed, self.num_classes, self.num_drawings])
        return hashlib.sha256(strokes.encode()).hexdigest()

    def _facts(self) -> dict[str, Any]:
        return {"partition": self.partition, "partition_seed": self.partition_seed, "data_seed": self.seed}


def draw_glyphs(num_classes: int, num_drawings: int, seed: int, image_size: int) -> Tensor:
    """uint8 (C·D, 1, H, H), 0 ink and 255 paper, sorted by character."""
    blocks = []
    for numbers in torch.arange(num_classes).split(BLOCK):
        controls, weight = characters(fold(seed, numbers))
        drawer = fold(seed, -1, numbers[:, None], torch.arange(num_drawings))
        points = strokes(redraw(controls, drawer))
        blocks.append(ink(points, weight, drawer, image_size).flatten(0, 1))
    return torch.cat(blocks)[:, None]


def characters(key: Tensor) -> tuple[Tensor, Tensor]:
    """Control points (C, S, CONTROLS, 2) in about [-1, 1] and the weight (C, S) of each stroke: 1, or 0 if
    unused.

    A stroke begins where an earlier one passed, or anywhere, and wanders with a turning heading.
    """
    start = uniform(fold(key, 0), (STROKES, 2)) * 1.6 - 0.8
    heading = uniform(fold(key, 1), (STROKES,)) * (2 * torch.pi)
    turn = normal(fold(key, 2), (STROKES,)) * 0.9
    wobble = normal(fold(key, 3), (STROKES, CONTROLS - 1)) * 0.35
    length = 0.25 + 0.45 * uniform(fold(key, 4), (STROKES, CONTROLS - 1))
    angle = heading[..., None] + turn[..., None] * torch.arange(CONTROLS - 1) + wobble
    steps = torch.stack([angle.cos(), angle.sin()], -1) * length[..., None]
    path = torch.cat([torch.zeros_like(steps[:, :, :1]), steps.cumsum(2)], 2)
    # Strokes that lean towards the middle keep the character inside the frame.
    controls = (start - path.mean(2) * 0.5)[:, :, None] + path
    joined = uniform(fold(key, 5), (STROKES,)) < 0.6
    joined[:, 0] = False
    offset = controls[:, :1, 1] - controls[:, :, 0]
    controls = torch.where(joined[..., None, None], controls + offset[:, :, None], controls)
    count = 1 + (uniform(fold(key, 6), (1,)) * 3.2).long()
    weight = (torch.arange(STROKES) < count).float()
    used = weight[..., None, None].expand_as(controls) > 0
    low = torch.where(used, controls, torch.inf).flatten(1, 2).amin(1)
    high = torch.where(used, controls, -torch.inf).flatten(1, 2).amax(1)
    # Centred on the box of its control points, and shrunk into the frame if it is larger.
    scale = 1.7 / (high - low).amax(-1).clamp(min=1.2)
    return (controls - ((low + high) / 2)[:, None, None]) * scale[:, None, None, None], weight


def redraw(controls: Tensor, drawer: Tensor) -> Tensor:
    """The same characters by the drawers with these keys (C, D): (C, D, S, CONTROLS, 2)."""
    tremble = normal(fold(drawer, 0), controls.shape[1:]) * 0.085
    slant, angle, stretch, size = normal(fold(drawer, 1), (4,)).unbind(-1)
    angle, slant = angle * 0.13, slant * 0.18
    size, stretch = (1 + 0.13 * size).clamp(0.65, 1.3), (1 + 0.13 * stretch).clamp(0.7, 1.3)
    row_x = torch.stack([angle.cos(), slant - angle.sin()], -1) * (size * stretch)[..., None]
    row_y = torch.stack([angle.sin(), angle.cos()], -1) * (size / stretch)[..., None]
    matrix = torch.stack([row_x, row_y], -2)
    shift = normal(fold(drawer, 2), (2,)) * 0.13
    moved = torch.einsum("cdij,cdskj->cdski", matrix, controls[:, None] + tremble)
    return moved + shift[:, :, None, None]


def strokes(controls: Tensor) -> Tensor:
    """Points (…, P, 2) of the uniform cubic B-spline through doubled ends of (…, CONTROLS, 2)."""
    ends = [controls[..., :1, :]] * 2, [controls[..., -1:, :]] * 2
    padded = torch.cat([*ends[0], controls, *ends[1]], -2)
    segments = padded.shape[-2] - 3
    position = torch.linspace(0, segments, POINTS, dtype=torch.float32).clamp(max=segments - 1e-4)
    index, t = position.long(), (position - position.long())[:, None]
    basis = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return sum((padded[..., index + k, :] * basis[k] / 6 for k in range(4)), torch.zeros(()))


def ink(points: Tensor, weight: Tensor, drawer: Tensor, image_size: int) -> Tensor:
    """uint8 (C, D, H, H) from points (C, D, S, P, 2): a Gaussian pen, summed along the strokes and hardened.

    The pen is separable, so that an image is one product of (H, S·P) and (S·P, H).
    """
    pen = 0.62 * (1 + 0.18 * normal(fold(drawer, 3), (1,))).clamp(0.75, 1.5) * (image_size / 28)
    grid = torch.arange(image_size, dtype=torch.float32) + 0.5
    pixels = (points + 1.25) * (image_size / 2.5)
    # Arc length per point, so that a slow stretch of the curve is not blacker than a fast one.
    arc = (pixels[..., 1:, :] - pixels[..., :-1, :]).norm(dim=-1)
    arc = torch.cat([arc, arc[..., -1:]], -1) * weight[:, None, :, None]
    arc, pixels = arc.flatten(2), pixels.flatten(2, 3)
    # Beyond six widths the pen leaves nothing; going on would reach subnormal numbers, which are slow.
    reach = ((grid - pixels.unflatten(-1, (2, 1))) / pen[..., None, None]).clamp(-6, 6)
    across, down = torch.exp(-0.5 * reach * reach).unbind(-2)
    density = (down * (arc / pen)[..., None]).transpose(-1, -2) @ across
    hard = ((density - 0.7) / 0.8).clamp(0, 1)
    return (255 * (1 - hard)).round().to(torch.uint8)
