"""Who computes what a run needs. The trainer asks a strategy and does not know how many processes answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from metalearn.core import Algorithm, Batch, Metrics, Source
from metalearn.engine.batching import Batching
from metalearn.engine.evaluate import EvalSpec, Evaluation, batching_of, evaluate, limited
from metalearn.engine.executor import Executor
from metalearn.engine.loader import TaskLoader
from metalearn.engine.locked import judged_source
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
        self.sizes: dict[EvalSpec, Batching] = {}
        self.saved_units: list[list[Any]] = []
        self.device = algorithm.outer_step.device
        # Before the work begins: what an allocator keeps for later does not count as free.
        self.free = free_share(self.device, ranks)

    def draw(self, step: int) -> Batch:
        """What this process has to do for outer step number `step`; `execute` must follow."""
        return self.loader.draw(step)

    def execute(self, batch: Batch) -> tuple[Tensor, Metrics]:
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
        return [[*kind_of(spec), size.unit] for spec, size in self.sizes.items()]

    def take_back_units(self, units: list[list[Any]]) -> None:
        """Go on with the units of a checkpoint."""
        self.saved_units = units
        self.sizes.clear()

    def size(self, spec: EvalSpec) -> Batching:
        """Found once for each evaluation, as it costs the scores of a task. With a warning fewer, where
        memory is short.
        """
        if spec not in self.sizes:
            source = judged_source(self.source, spec.tasks, spec.split)
            size, demand = batching_of(self.algorithm, source, spec, self.executor.plan)
            size.fit(demand, self.free, OVERHEAD[self.device.type])
            size.unit = min([size.unit, *(unit for *of, unit in self.saved_units if of == kind_of(spec))])
            self.sizes[spec] = size
        return self.sizes[spec]

    def evaluate(self, spec: EvalSpec, on_batch: Callable[[int], None] | None = None) -> Evaluation:
        """As `metalearn.engine.evaluate.evaluate`, with the present weights."""
        source = judged_source(self.source, spec.tasks, spec.split)
        spec, plan = limited(spec, source), self.executor.plan
        size = self.size(spec)
        return evaluate(self.algorithm, source, spec, plan=plan, size=size, on_batch=on_batch)


def kind_of(spec: EvalSpec) -> list[Any]:
    """What the unit of an evaluation depends on, as checkpoints name it."""
    return [spec.split, spec.seed, spec.total, spec.curve]
