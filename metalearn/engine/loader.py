"""What outer steps learn from, drawn for many small steps at once.

Tasks are pure functions of their number, so that it changes nothing but the time: drawing costs some hundred
operations however few the tasks are, which is as much as a whole step of a small network.
"""

from __future__ import annotations

from dataclasses import replace

from torch.utils._pytree import tree_leaves, tree_map

from metalearn.core import Algorithm, Batch, Source
from metalearn.engine.evaluate import draw_tasks
from metalearn.engine.settings import Settings

BLOCK_BYTES = 1 << 18  # so that a block stays in a core's cache
LONGEST_BLOCK = 64  # outer steps


class TaskLoader:
    """share: the tasks of each meta-batch that are wanted, by their place in it; all by default."""

    def __init__(
        self, algorithm: Algorithm, source: Source, settings: Settings, share: range | None = None
    ) -> None:
        self.algorithm, self.source, self.settings, self.share = algorithm, source, settings, share
        self.length = 0  # outer steps in a block; 0 until the size of one is known
        self.number = -1  # of the block at hand
        self.block: Batch | None = None

    def draw(self, step: int) -> Batch:
        """The tasks, or rows, of outer step number `step`."""
        if self.length <= 1:
            batch = draw_batch(self.algorithm, self.source, self.settings, step, self.share)
            self.length = self.length or max(
                1, min(LONGEST_BLOCK, BLOCK_BYTES // sum(leaf.nbytes for leaf in tree_leaves(batch)))
            )
            return batch
        number, place = divmod(step, self.length)
        if number != self.number:
            self.block, self.number = self._draw_block(number), number
        size, share = wanted(self.algorithm, self.settings, self.share)
        first = place * size + share.start
        return tree_map(lambda leaf: leaf[first : first + len(share)], self.block)

    def _draw_block(self, number: int) -> Batch:
        """A block is one step of a run with so many times as large batches."""
        tasks, rows = self.settings.meta_batch_size, self.settings.batch_size
        larger = replace(self.settings, meta_batch_size=tasks * self.length, batch_size=rows * self.length)
        return draw_batch(self.algorithm, self.source, larger, number)


def draw_batch(
    algorithm: Algorithm, source: Source, settings: Settings, step: int, share: range | None = None
) -> Batch:
    """What outer step number `step` learns from: a pure function of (seed, step).

    share: the tasks of the meta-batch that are wanted, by their place in it; all by default.
    """
    size, share = wanted(algorithm, settings, share)
    if algorithm.trains_on == "examples":
        return source.examples(seed=settings.seed, first=step * size, count=size)
    return draw_tasks(
        algorithm, source, "train", seed=settings.seed, first=step * size + share.start, count=len(share)
    )


def wanted(algorithm: Algorithm, settings: Settings, share: range | None) -> tuple[int, range]:
    """How many rows or tasks an outer step has, and which of them are wanted: a flat minibatch is never
    shared.
    """
    if algorithm.trains_on == "examples":
        return settings.batch_size, range(settings.batch_size)
    size = settings.meta_batch_size
    return size, range(size) if share is None else share
