"""Who computes what a run needs. The trainer asks a strategy and does not know how many processes answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from metalearn.core import Algorithm, Examples, Metrics, Source, Split, TaskBatch
from metalearn.engine.batching import Batching
from metalearn.engine.evaluate import Evaluation, Exam, batching_of, evaluate, num_episodes
from metalearn.engine.executor import Executor
from metalearn.engine.loader import TaskLoader
from metalearn.engine.memory import OVERHEAD, free_share
from metalearn.engine.settings import Settings


class SingleProcess:
    """This process alone; `metalearn.distributed.strategy` has the strategy of several."""

    def __init__(
        self, algorithm: Algorithm, source: Source, executor: Executor, settings: Settings, *, ranks: int = 1
    ) -> None:
        self.algorithm, self.source = algorithm, source
        self.executor, self.settings = executor, settings
        self.asked = executor.plan
        self.loader = TaskLoader(algorithm, source, settings)
        self.sizes: dict[tuple[Exam, int | None], Batching] = {}
        self.saved_units: list[list[Any]] = []
        self.device = algorithm.outer_step.device
        # Before the work begins: what an allocator keeps for later does not count as free.
        self.free = free_share(self.device, ranks)

    def draw(self, step: int) -> TaskBatch | Examples:
        """What this process has to do for outer step number `step`; `execute` must follow."""
        return self.loader.draw(step)

    def execute(self, batch: TaskBatch | Examples) -> tuple[Tensor, Metrics]:
        """Fill `.grad` with the mean gradient over the meta-batch; return its losses (T,) and mean
        metrics.
        """
        return self.executor.execute(batch)

    def chunks(self) -> list[int]:
        """The present `device.chunk` of every process, which is halved where memory runs out. May sync with
        the device.
        """
        return [self.executor.plan.chunk]

    def take_back(self, chunks: Sequence[int]) -> None:
        """Go on with the chunks of a checkpoint; with the one that was asked for if they are of another
        number of processes.
        """
        self.executor.plan = replace(self.asked, chunk=chunks[0]) if len(chunks) == 1 else self.asked

    def units(self) -> list[list[Any]]:
        """[split, seed, episodes, curve, unit] of every evaluation so far: what was halved when memory ran
        out stays so.
        """
        return [
            [exam.split, exam.seed, exam.episodes, exam.curve, size.unit]
            for (exam, _), size in self.sizes.items()
        ]

    def take_back_units(self, units: list[list[Any]]) -> None:
        """Go on with the units of a checkpoint."""
        self.saved_units = units
        self.sizes.clear()

    def exam(self, split: Split, seed: int, episodes: int, *, curve: bool = True) -> Exam:
        return Exam(split, seed, num_episodes(self.source, split, episodes), curve=curve)

    def size(self, exam: Exam, limit: int | None) -> Batching:
        """Found once for each kind of evaluation, as it costs the scores of a task. With a warning fewer,
        where memory is short.
        """
        if (exam, limit) not in self.sizes:
            size, demand = batching_of(self.algorithm, self.source, exam, self.executor.plan, limit)
            size.fit(demand, self.free, OVERHEAD[self.device.type])
            kind = [exam.split, exam.seed, exam.episodes, exam.curve]
            size.unit = min([size.unit, *(unit for *of, unit in self.saved_units if of == kind)])
            self.sizes[exam, limit] = size
        return self.sizes[exam, limit]

    def evaluate(
        self,
        split: Split,
        *,
        seed: int,
        episodes: int,
        batch_size: int | None,
        curve: bool = True,
        on_batch: Callable[[int], None] | None = None,
    ) -> Evaluation:
        """As `metalearn.engine.evaluate.evaluate`, with the present weights."""
        return evaluate(
            self.algorithm,
            self.source,
            split,
            seed=seed,
            episodes=episodes,
            plan=self.executor.plan,
            curve=curve,
            size=self.size(self.exam(split, seed, episodes, curve=curve), batch_size),
            on_batch=on_batch,
        )
