"""Choosing a plan: time the candidates on the run's own tasks, and trust none whose gradient is not that of `loop` (`engine.proof`)."""

from __future__ import annotations

import logging
import math
import statistics
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.core import Algorithm, Examples, TaskBatch
from metalearn.engine.execution import Executor, TaskPlan
from metalearn.engine.explain import explanation
from metalearn.engine.proof import Batch, Proof, refuse_impure, with_ordinary_norms
from metalearn.errors import ConfigError, MetalearnError
from metalearn.messages import unheard

log = logging.getLogger(__name__)

CHUNKS = (4, 16)  # besides the configured one and the whole meta-batch
ROUNDS, BUDGET = 5, 5.0  # timings of each candidate, and seconds after which no further round is begun
NEAR = 1.3  # a plan within this factor of the fastest may overtake it once both are compiled
WORTH_COMPILING = 120.0  # seconds of uncompiled outer steps below which a compiler, which takes about a minute, is not tried


@dataclass(frozen=True)
class Wish:
    """What `device.plan`, `device.chunk` and `device.compile` ask for."""

    name: Literal["auto", "loop", "vmap"]
    chunk: int
    compile: bool | Literal["auto"]

    @property
    def settled(self) -> bool:
        """True: there is nothing to measure."""
        return self.name != "auto" and self.compile != "auto"

    def plan(self) -> TaskPlan:
        if self.name == "auto" or self.compile == "auto":
            raise ConfigError("device.plan=auto and device.compile=auto choose how to train; name a plan here: device.plan=loop or vmap")
        return TaskPlan(self.name, self.chunk, self.compile)

    def candidates(self, num_tasks: int) -> list[TaskPlan]:
        """Plans without compilation, the one that is trusted first."""
        if self.name != "auto":
            return [TaskPlan(self.name, self.chunk)]
        sizes = sorted({size for size in (*CHUNKS, self.chunk or num_tasks) if size < num_tasks})
        return [TaskPlan("loop"), *(TaskPlan("vmap", size) for size in sizes), TaskPlan("vmap")]


@dataclass(frozen=True)
class Timing:
    """seconds: median of an outer step's gradient. build: seconds that compiling took."""

    plan: TaskPlan
    seconds: float
    build: float = 0.0

    def total(self, steps: int) -> float:
        return self.build + steps * self.seconds


@dataclass
class Measured:
    """timings of the plans that work, and why the others were dropped."""

    timings: list[Timing] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)

    def best(self, steps: int) -> Timing:
        if not self.timings:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.dropped.items())
            raise MetalearnError(f"no plan works on these tasks ({reasons})")
        return min(self.timings, key=lambda timing: timing.total(steps))

    def table(self, steps: int) -> str:
        """One line per plan, the chosen one marked."""
        best = self.best(steps)
        lines = [f"plans, for {steps} outer steps:"]
        for timing in self.timings:
            built = f", built in {timing.build:.0f} s" if timing.build else ""
            mark = "  <- chosen" if timing is best else ""
            lines.append(f"  {timing.plan!s:24} {1000 * timing.seconds:9.2f} ms per gradient{built}{mark}")
        return "\n".join([*lines, *(f"  {name:24} dropped: {reason}" for name, reason in self.dropped.items())])

    def to_json(self) -> dict[str, Any]:
        return {"timings": [asdict(timing) for timing in self.timings], "dropped": self.dropped}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Measured:
        timings = [Timing(TaskPlan(**entry["plan"]), float(entry["seconds"]), float(entry["build"])) for entry in values["timings"]]
        return Measured(timings, {str(name): str(reason) for name, reason in values["dropped"].items()})


def unmeasured(algorithm: Algorithm) -> TaskPlan:
    """How tasks are mapped where nothing was measured: all at once, if the method declares that they can be."""
    return TaskPlan("vmap" if "vmap" in algorithm.plans else "loop")


def tune(algorithm: Algorithm, batch: Batch, wish: Wish, *, steps: int) -> Measured:
    """Time what the wish allows. Weights, `.grad` and running averages are left alone.

    batch: a meta-batch of the run. steps: outer steps of the run, by which compilation must pay for itself.
    """
    actor = with_ordinary_norms(algorithm)
    refuse_impure(actor, batch)
    proof = Proof(actor, batch)
    found = Measured()
    candidates = wish.candidates(1 if isinstance(batch, Examples) else len(batch.key))
    candidates = [plan for plan in candidates if plan.name in algorithm.plans]
    time_all([executor for plan in candidates if (executor := _try(actor, plan, proof, found))], batch, found)
    if wish.compile is False:
        return found
    fastest = found.best(steps)
    if wish.compile == "auto" and steps * fastest.seconds < WORTH_COMPILING:
        log.info(f"not compiled: {steps} outer steps take {steps * fastest.seconds:.0f} s without, and compiling itself about a minute")
        return found
    for plan in finalists(found.timings, fastest):
        start = time.perf_counter()
        executor = _try(actor, plan, proof, found)
        build = time.perf_counter() - start
        if executor is not None:
            time_all([executor], batch, found, build=build)
    if wish.compile is True:
        found.timings = [timing for timing in found.timings if timing.plan.compile]
        if not found.timings:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in found.dropped.items())
            raise ConfigError(f"device.compile=true, but no compiled plan works ({reasons}); use device.compile=auto or false")
    return found


def finalists(timings: list[Timing], fastest: Timing) -> list[TaskPlan]:
    """The plans to compile: the fastest, and the one that takes fewest tasks at once if it is near; each takes a minute."""
    leanest = min(timings, key=lambda timing: (timing.plan.name != "loop", timing.plan.chunk or math.inf))
    near = [leanest] if leanest is not fastest and leanest.seconds < NEAR * fastest.seconds else []
    return [replace(timing.plan, compile=True) for timing in (fastest, *near)]


def time_all(executors: list[Executor], batch: TaskBatch | Examples, found: Measured, *, build: float = 0.0) -> None:
    """Interleaved, so that whatever else the machine does falls on all of them alike."""
    seconds: list[list[float]] = [[] for _ in executors]
    begin = time.perf_counter()
    for number in range(ROUNDS):
        if number and time.perf_counter() - begin > BUDGET:
            break
        for executor, taken in zip(executors, seconds, strict=True):
            start = time.perf_counter()
            _settle(executor.sums(batch).losses)
            taken.append(time.perf_counter() - start)
    for executor, taken in zip(executors, seconds, strict=True):
        found.timings.append(Timing(executor.plan, statistics.median(taken), build))


def _try(actor: Algorithm, plan: TaskPlan, proof: Proof, found: Measured) -> Executor | None:
    """An executor that gave the right gradient once, warm for timing; None, and the reason in `found`, if there is none."""
    executor = Executor(actor, plan)
    try:
        with unheard():  # the table says what became of it
            problem = proof.problem(executor)
    except (RuntimeError, MetalearnError) as error:  # vmap cannot map every operation, nor a compiler read it
        problem = explanation(error, actor) or str(error).strip().splitlines()[0] or type(error).__name__
    if problem is None and executor.plan != plan:
        problem = "out of memory"
    if problem is not None:
        found.dropped[str(plan)] = problem
        return None
    return executor


def _settle(result: Tensor) -> None:
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
