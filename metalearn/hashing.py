"""Random numbers as pure functions of integers (SplitMix64), the same bits on every device.

Nothing here holds state, so there is nothing to save, and draw number i is the same for every batch
size, process count and resume point. Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom
number generators", as in Vigna's splitmix64.c. Run eagerly: compilers have folded the overflowing constants
wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from metalearn.core import Draw

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64
QUANTILES = 65_536


def mix(x: Tensor) -> Tensor:
    """SplitMix64's output function on int64 words; a bijection, any shape."""
    x = x + GOLDEN
    x = (x ^ _shift(x, 30)) * MIX_1
    x = (x ^ _shift(x, 27)) * MIX_2
    return x ^ _shift(x, 31)


def fold(*words: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """One int64 hash of a sequence of integers, broadcasting over tensors; the order matters."""
    state = torch.zeros((), dtype=torch.int64, device=device)
    for word in words:
        word = (
            word
            if isinstance(word, Tensor)
            else torch.full((), _wrap(word), dtype=torch.int64, device=state.device)
        )
        state = mix(state.to(word.device) ^ mix(word))
    return state


def keys(*words: int | Tensor, count: int, bits: int = 20) -> Tensor:
    """Sort keys (…, count) for a draw without replacement: random high bits, the index in the low bits.

    The low bits make ties impossible and give the index back as `key & (2**bits - 1)`.
    """
    if count > 1 << bits:
        raise ValueError(f"cannot draw from {count} items; the sampler's limit is {1 << bits}")
    state = fold(*words)
    index = torch.arange(count, device=state.device)
    random = mix(state[..., None] ^ mix(index))
    return ((random >> bits) << bits) | index


def choose(*words: int | Tensor, count: int, size: int) -> Tensor:
    """`size` different indices out of `count`, in random order: int64 (…, size)."""
    bits = max(count - 1, 1).bit_length()
    top = keys(*words, count=count, bits=bits).topk(size, dim=-1).values
    return top & ((1 << bits) - 1)


def uniform(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers in [0, 1) on a grid of 2^-24, float32 (*key.shape, *shape)."""
    return _shift(_words(key, shape), 40).to(torch.float32) * 2.0**-24


def normal(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normals through a table of 65,536 quantiles, float32 (*key.shape, *shape)."""
    return _quantiles(key.device)[_shift(_words(key, shape), 48)]


def permutation(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Independent permutations of the last dimension, int64 (*key.shape, *shape)."""
    return _words(key, shape).argsort(dim=-1, stable=True)


def draw(key: Tensor, wanted: dict[str, Draw]) -> dict[str, Tensor]:
    """The random numbers that an algorithm wants, for tasks with these keys (T,)."""
    kinds = {"normal": normal, "uniform": uniform, "permutation": permutation}
    return {
        name: kinds[d.kind](fold(key, number), d.shape)
        for number, (name, d) in enumerate(sorted(wanted.items()))
    }


def _words(key: Tensor, shape: Sequence[int]) -> Tensor:
    index = torch.arange(prod(shape), device=key.device).reshape(tuple(shape))
    return mix(key.reshape(*key.shape, *[1] * len(shape)) ^ mix(index))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; int64's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(word: int) -> int:
    """A Python integer as the int64 with the same low 64 bits."""
    return (word + 2**63) % 2**64 - 2**63


@lru_cache(maxsize=8)
def _quantiles(device: torch.device) -> Tensor:
    # float64 erfinv on the CPU, rounded once: every device then looks up the same bits.
    grid = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    quantiles: Tensor = torch.special.ndtri(grid)
    return quantiles.to(torch.float32).to(device)
