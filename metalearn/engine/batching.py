"""How many tasks an evaluation takes at once: as many as are fast, no more than fit, and never to be seen in
a number.

The bits of a task's scores depend on how many tasks are mapped together: kernels are chosen by size, and sums
are shared out among threads. (In trials, MAML's scores of one task alone differed from those of 20 in the
last digit, with two threads those of 2 or 3 did too, in float64 those of 10; an inner_lr of 0.4 made 4e-2 of
a loss out of it.) So what is
mapped together, a unit, follows from the shapes of the tasks alone: from the bytes that one of them takes,
which are counted, and from the number of episodes if
that is smaller. Free memory, timings, ranks and `eval.chunk` have no say in it. A last unit that is not
full is filled by repeating its last task, and every unit is copied into tensors of one layout and alignment.

A unit is as large as is fast: on a CPU, time per task falls up to some hundred MiB of tensors and rises
beyond. A machine
without room for that much is rare, and nothing but fewer tasks helps it: they are halved as in training, a
warning says so, and the numbers then differ in their last digits, as those of another `device.plan` do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.core import TaskBatch
from metalearn.engine.memory import Demand, LiveBytes, first_line, is_out_of_memory
from metalearn.errors import MetalearnError

UNIT_BYTES = {"cpu": 640 * 2**20, "cuda": 2 * 2**30}  # of tensors
UNITS = (50, 20, 10, 5, 2, 1)  # the usual numbers of episodes are multiples of all of them

log = logging.getLogger(__name__)

Scores = dict[str, Tensor]  # (T,) each
Score = Callable[[TaskBatch], Scores]


@dataclass
class Batching:
    """unit: tasks mapped together, halved where memory runs out. held: tasks drawn together, whole units of
    them.

    alone: True where the plan maps the tasks of a unit one after the other, so that a last unit need not be
    full.
    """

    unit: int
    held: int
    alone: bool = False

    def scores(self, score: Score, batch: TaskBatch) -> Scores:
        """The scores of all tasks of a batch, unit by unit. MetalearnError where not even one task fits into
        memory.
        """
        done, count, parts = 0, len(batch.key), []
        while done < count:
            size = min(self.unit, count - done)
            try:
                part = score(self._rows(batch, done, size if self.alone else self.unit))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = first_line(error)
            else:
                parts.append({name: values[:size] for name, values in part.items()})
                done += size
                continue
            self._halve(problem)  # after the handler, which holds on to the tensors of the attempt
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def busiest(self, episodes: int, ranks: int) -> int:
        """How many of so many tasks the busiest rank takes, which has whole batches; a unit that is filled up
        counts whole.
        """
        batches = -(-episodes // self.held)
        computed = episodes if self.alone else -(-episodes // self.unit) * self.unit
        return min(-(-batches // ranks) * self.held, computed)

    def fit(self, demand: Demand, free: int | None, overhead: float) -> None:
        """Halve the unit before the work begins, where so many tasks would take more than is free; see
        `Demand.complaint`.
        """
        complaint = demand.complaint(free, overhead)
        if complaint is None:
            return
        log.warning(f"{complaint}, which may change the last digits of the numbers")
        while self.unit > 1 and replace(demand, count=self.unit).complaint(free, overhead) is not None:
            self.unit //= 2

    def _rows(self, batch: TaskBatch, first: int, count: int) -> TaskBatch:
        """`count` tasks from number `first` on, the last one of the batch again and again where there are no
        more.
        """
        rows = torch.arange(first, first + count, device=batch.key.device).clamp(max=len(batch.key) - 1)
        some: TaskBatch = tree_map(lambda leaf: leaf.index_select(0, rows), batch)
        return some

    def _halve(self, problem: str) -> None:
        if self.alone or self.unit == 1:
            raise too_large(problem)
        log.warning(
            f"out of memory with {self.unit} tasks at once; going on with {self.unit // 2}, which may change "
            "the last digits of the numbers"
        )
        self.unit //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # blocks of the old sizes are in the way of smaller ones


def batching(
    score: Score, task: TaskBatch, *, alone: bool, episodes: int, limit: int | None
) -> tuple[Batching, Demand]:
    """What suits tasks like this one, and the memory that it takes.

    task: a batch of one, which is scored twice. episodes: how many there will be. limit: `eval.chunk`,
    None for as few as do. Raises MetalearnError if this task does not fit into memory.
    """
    device = task.key.device
    with one_sentence():
        score(task)  # the first call of its kind also fills caches
        with LiveBytes() as count:
            score(task)
    unit = min(episodes, next(n for n in UNITS if n == 1 or n * count.peak <= UNIT_BYTES[device.type]))
    size = Batching(unit, max(1, (limit or unit) // unit) * unit, alone)
    held = size.held * sum(leaf.nbytes for leaf in tree_leaves(task))
    return size, Demand("evaluation", 1 if alone else unit, "task", held, count.peak, None)


@contextmanager
def one_sentence(count: int = 1, *, least: bool = True) -> Iterator[None]:
    """Memory that runs out with so many tasks at once is a MetalearnError that says what to do. least: they
    cannot be fewer.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise too_large(first_line(error), count, least=least) from error


def too_large(problem: str, count: int = 1, *, least: bool = True) -> MetalearnError:
    many = f"{count} tasks at once" if count > 1 else "a single task"
    way_out = "choose a smaller model, fewer rows or fewer adaptation steps" if least else "lower eval.chunk"
    return MetalearnError(f"out of memory with {many}: {problem}; {way_out}")
