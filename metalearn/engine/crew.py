"""Who computes what a run needs. The trainer asks a crew and does not know how many processes answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from metalearn.core import Algorithm, Examples, Metrics, Source, Split, TaskBatch
from metalearn.engine.batching import Batching
from metalearn.engine.evaluate import Evaluation, Exam, batching_of, evaluate, num_episodes
from metalearn.engine.execution import Executor
from metalearn.engine.feed import Feed
from metalearn.engine.memory import OVERHEAD, free_share
from metalearn.engine.settings import Settings


class Crew:
    """This process alone; `metalearn.engine.ranks` has the crew of several."""

    ranks = 1

    def __init__(self, algorithm: Algorithm, source: Source, executor: Executor, settings: Settings) -> None:
        self.algorithm, self.source = algorithm, source
        self.executor, self.settings = executor, settings
        self.asked = executor.plan
        self.feed = Feed(algorithm, source, settings)
        self.sizes: dict[tuple[Exam, int | None], Batching] = {}

    def draw(self, step: int) -> TaskBatch | Examples:
        """What this process has to do for outer step number `step`; `execute` must follow."""
        return self.feed.draw(step)

    def execute(self, batch: TaskBatch | Examples) -> tuple[Tensor, Metrics]:
        """Fill `.grad` with the mean gradient over the meta-batch; return its losses (T,) and mean metrics."""
        return self.executor.execute(batch)

    def chunks(self) -> list[int]:
        """The present `device.chunk` of every process, which is halved where memory runs out. May sync with the device."""
        return [self.executor.plan.chunk]

    def take_back(self, chunks: Sequence[int]) -> None:
        """Go on with the chunks of a checkpoint; with the one that was asked for if they are of another number of processes."""
        self.executor.plan = replace(self.asked, chunk=chunks[0]) if len(chunks) == 1 else self.asked

    def units(self) -> list[list[Any]]:
        """[split, seed, episodes, curve, unit] of every evaluation so far: what was halved when memory ran out stays so."""
        return [[exam.split, exam.seed, exam.episodes, exam.curve, size.unit] for (exam, _), size in self.sizes.items()]

    def take_back_units(self, units: Sequence[Sequence[Any]]) -> None:
        """Go on with the units of a checkpoint, for evaluations that `forecast` has seen."""
        for (exam, _), size in self.sizes.items():
            size.unit = min([size.unit, *(unit for *of, unit in units if of == [exam.split, exam.seed, exam.episodes, exam.curve])])

    def forecast(self, split: Split, *, seed: int, episodes: int, batch_size: int | None, curve: bool = True) -> None:
        """Warn, and take fewer tasks at once, where an evaluation needs more memory than is free.

        Before the work begins: what an allocator keeps for later does not count as free.
        """
        exam = self.exam(split, seed, episodes, curve=curve)
        size, demand = batching_of(self.algorithm, self.source, exam, self.executor.plan, batch_size)
        device = self.source.tasks(split, seed=seed, first=0, count=1).key.device
        size.fit(demand, free_share(device, self.ranks), OVERHEAD[device.type])
        self.sizes[exam, batch_size] = size

    def exam(self, split: Split, seed: int, episodes: int, *, curve: bool = True) -> Exam:
        return Exam(split, seed, num_episodes(self.source, split, episodes), curve=curve)

    def size(self, exam: Exam, limit: int | None) -> Batching:
        """Found once for each kind of evaluation: it costs the scores of a few tasks, and what was halved stays so."""
        if (exam, limit) not in self.sizes:
            self.sizes[exam, limit], _ = batching_of(self.algorithm, self.source, exam, self.executor.plan, limit)
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
