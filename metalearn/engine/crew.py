"""Who computes what a run needs. The trainer asks a crew and does not know how many processes answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from metalearn.core import Algorithm, Examples, Metrics, Source, Split, TaskBatch
from metalearn.engine.evaluate import Evaluation, evaluate
from metalearn.engine.execution import Executor
from metalearn.engine.feed import Feed
from metalearn.engine.settings import Settings


class Crew:
    """This process alone; `metalearn.engine.ranks` has the crew of several."""

    def __init__(self, algorithm: Algorithm, source: Source, executor: Executor, settings: Settings) -> None:
        self.algorithm, self.source = algorithm, source
        self.executor, self.settings = executor, settings
        self.asked = executor.plan
        self.feed = Feed(algorithm, source, settings)

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

    def evaluate(
        self,
        split: Split,
        *,
        seed: int,
        episodes: int,
        batch_size: int,
        curve: bool = True,
        on_batch: Callable[[int], None] | None = None,
    ) -> Evaluation:
        """As `metalearn.engine.evaluate.evaluate`, with the present weights."""
        plan = self.executor.plan
        return evaluate(
            self.algorithm,
            self.source,
            split,
            seed=seed,
            episodes=episodes,
            plan=plan,
            batch_size=batch_size,
            curve=curve,
            on_batch=on_batch,
        )
