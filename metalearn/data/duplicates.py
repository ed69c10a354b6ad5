"""Pictures that are in the data more than once: to the bit, or nearly.

Nearly: a 64-bit perceptual hash (the signs of the lowest 8x8 frequencies of a 32x32 thumbnail against their
median: pHash, Zauner 2010) finds candidates within MOST_BITS of each other; they count if their thumbnails
correlate with at least LEAST_CORRELATION, which a change of brightness or contrast leaves as it is.
Shape letters: N pictures, P pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from metalearn.data.pictures import SIDE, Prints

log = logging.getLogger(__name__)

FREQUENCIES = 8
# By eye on photographs, microscope crops and line drawings: with these, all pairs show one scene, one cell or
# one stroke. 10 bits also pair round cells of a kind, and a correlation of 0.9 all photographs of one shelf.
MOST_BITS = 6
LEAST_CORRELATION = 0.96
MOST_PAIRS = 1_000_000  # after which the search ends
ROWS, COLUMNS = 16, 4096  # hashes compared at once: what fits a core's cache
METHOD = (
    "Equal: the same pixels, whatever the file format. Near duplicates: 64-bit perceptual hashes (pHash) "
    f"within {MOST_BITS} bits, and 32x32 grey thumbnails whose correlation is at least {LEAST_CORRELATION}."
)


class Pairs(NamedTuple):
    """first, second: picture numbers (P,). turn: quarter turns of the second. correlation: float32 (P,).
    complete: whether these are all.
    """

    first: np.ndarray
    second: np.ndarray
    turn: np.ndarray
    correlation: np.ndarray
    complete: bool = True

    def at(self, chosen: np.ndarray) -> Pairs:
        first, second, turn, correlation = (column[chosen] for column in self[:4])
        return Pairs(first, second, turn, correlation, self.complete)


def equal_groups(sha256: Sequence[str], members: np.ndarray) -> list[list[int]]:
    """Groups of two and more of these pictures that have the same pixels, in order."""
    groups: dict[str, list[int]] = {}
    for number in members.tolist():
        if sha256[number]:
            groups.setdefault(sha256[number], []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(prints: Prints, members: np.ndarray, turns: Sequence[int] = (0,)) -> Pairs:
    """Pairs among these pictures that look alike, the second after so many quarter turns.

    turns: of 0, 1, 2; three quarter turns of the one are one of the other. Pictures of a single grey level
    are no pair, and of pictures that are equal to the bit only the first counts. A turned picture may be a
    pair with itself.
    """
    firsts = {prints.sha256[number]: number for number in reversed(members.tolist())}
    flat = prints.flat
    kept = np.array([n for sha256, n in firsts.items() if sha256 and not flat[n]], dtype=np.int64)
    kept.sort()
    thumbs = prints.thumbs[kept]
    hashes, found = perceptual_hash(thumbs), 0
    parts: list[tuple[np.ndarray, ...]] = []
    for turn in turns:
        turned = np.rot90(thumbs, turn, axes=(1, 2))
        others = hashes if turn == 0 else perceptual_hash(turned)
        for first, second in _candidates(hashes, others, turn):
            correlation = _correlation(thumbs[first], turned[second])
            alike = correlation >= LEAST_CORRELATION
            parts.append((first[alike], second[alike], np.full(alike.sum(), turn), correlation[alike]))
            found += int(alike.sum())
            if found > MOST_PAIRS:
                return _together(kept, parts, complete=False)
    return _together(kept, parts, complete=True)


def _together(kept: np.ndarray, parts: Sequence[tuple[np.ndarray, ...]], *, complete: bool) -> Pairs:
    nothing = np.zeros(0, dtype=np.int64)
    first, second, turn, correlation = (
        np.concatenate(column)
        for column in zip((nothing, nothing, nothing, np.zeros(0)), *parts, strict=True)
    )
    order = np.argsort(-correlation, kind="stable")
    return Pairs(kept[first], kept[second], turn, correlation, complete).at(order)


def perceptual_hash(thumbs: np.ndarray) -> np.ndarray:
    """uint64 (N,) of uint8 (N, SIDE, SIDE)."""
    place = np.arange(SIDE) + 0.5
    basis = np.cos(np.pi / SIDE * np.arange(FREQUENCIES)[:, None] * place).astype(np.float32)
    low = np.empty((len(thumbs), FREQUENCIES * FREQUENCIES), dtype=np.float32)
    for start in range(0, len(thumbs), COLUMNS):
        block = thumbs[start : start + COLUMNS].astype(np.float32)
        low[start : start + COLUMNS] = (basis @ block @ basis.T).reshape(len(block), -1)
    # The mean, which comes first, says nothing of the shape.
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _candidates(hashes: np.ndarray, others: np.ndarray, turn: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (i, j) of hashes within MOST_BITS of each other: all pairs for one quarter turn, else those with
    i < j, and i = j for two, where (j, i) says the same.
    """
    total, compared, said = len(hashes), 0, 0
    offset = {0: 1, 2: 0}.get(turn)
    difference = np.empty((ROWS, COLUMNS), dtype=np.uint64)
    for top in range(0, total, ROWS):
        rows = hashes[top : top + ROWS, None]
        for left in range(0 if offset is None else top, total, COLUMNS):
            columns = others[None, left : left + COLUMNS]
            part = difference[: len(rows), : columns.shape[1]]
            np.bitwise_xor(rows, columns, out=part)
            first, second = np.nonzero(np.bitwise_count(part) <= MOST_BITS)
            first, second = first + top, second + left
            if offset is not None:
                ordered = second >= first + offset
                first, second = first[ordered], second[ordered]
            if len(first):
                yield first, second
            compared += part.size
        if compared // 2_000_000_000 > said:
            said = compared // 2_000_000_000
            log.info("compared %.1f billion pairs of pictures", compared / 1e9)


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's r of the pixels of pairs of thumbnails, float32 (P,)."""
    parts = []
    for start in range(0, len(first), COLUMNS):
        a, b = (
            x[start : start + COLUMNS].reshape(-1, SIDE * SIDE).astype(np.float32) for x in (first, second)
        )
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        parts.append((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))
    return np.concatenate(parts)
