"""Choosing a plan: time the candidates on the run's own tasks, and trust none whose gradient is not that of
`loop` (`plan_check`).

Time on a processor is what counts: on a machine that others keep busy the clock says little about a plan, and
less about a compiler.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from metalearn.core import Algorithm, Batch
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.explain import explanation
from metalearn.engine.plan_check import PlanCheck, refuse_impure, with_ordinary_norms
from metalearn.errors import ConfigError, MetalearnError
from metalearn.rundir.messages import unheard

log = logging.getLogger(__name__)

CHUNKS = (4, 16)  # besides the configured one and the whole meta-batch
ROUNDS, BUDGET = 5, 5.0  # timings of each candidate, and seconds after which no further round is begun
NEAR = 1.3  # a plan within this factor of the fastest may overtake it once both are compiled
# How much faster compiling makes a plan at most, for what a compiler may take: docs/performance.md has 1.1 to
# 2.5 times, and 6 for a network of two small layers, for which a compiler takes half a minute.
MOST_GAIN = 3.0
SMALLEST_BUILD = 40.0  # seconds of processor time, which a compiler takes for the smallest network
# of a compiler's time, which each process that uses what it made takes again: 8% of a conv net's, 13% of the
# smallest
REPEATED = 0.15
BUSY = 1.3  # times as long by the clock as on a processor: other work keeps the machine busy


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
            raise ConfigError(
                "device.plan=auto and device.compile=auto choose how to train; name a plan here: "
                "device.plan=loop or vmap"
            )
        return TaskPlan(self.name, self.chunk, self.compile)

    def candidates(self, num_tasks: int) -> list[TaskPlan]:
        """Plans without compilation, the one that is trusted first."""
        if self.name != "auto":
            return [TaskPlan(self.name, self.chunk)]
        sizes = sorted({size for size in (*CHUNKS, self.chunk or num_tasks) if size < num_tasks})
        return [TaskPlan("loop"), *(TaskPlan("vmap", size) for size in sizes), TaskPlan("vmap")]


@dataclass(frozen=True)
class Timing:
    """Medians of an outer step's gradient, and what compiling took.

    seconds: on a processor, of the calling thread, which computes while any other does; on a GPU by the
    clock. wall: by the clock.
    build: of processor time, until the first gradient; of these, `again` in each process that finds what the
    compiler made.
    """

    plan: TaskPlan
    seconds: float
    wall: float = 0.0
    build: float = 0.0
    again: float = 0.0

    def total(self, steps: int) -> float:
        """What a run of so many steps takes from now on: what was compiled is there, and read once more by
        ranks and by a resumed run.
        """
        return self.again + steps * self.seconds

    def __str__(self) -> str:
        built = f", built in {self.build:.0f} s" if self.build else ""
        busy = (
            f" ({1000 * self.wall:.2f} by the clock: the machine is busy)"
            if self.wall > BUSY * self.seconds
            else ""
        )
        return f"{self.plan!s:24} {1000 * self.seconds:9.2f} ms per gradient{busy}{built}"


@dataclass(frozen=True)
class Attempt:
    """Compiling ahead of use, in another process. seconds: of processor time. problem: why there is nothing
    that could be used.

    ended: it was stopped on the way. refused: PyTorch's compiler does not take such a run.
    """

    seconds: float
    problem: str | None = None
    ended: bool = False
    refused: bool = False


# compile this plan within so many seconds of processor time, if any number is given
Ahead = Callable[[TaskPlan, float | None], Attempt]


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
            lines.append(f"  {timing}{'  <- chosen' if timing is best else ''}")
        return "\n".join(
            [*lines, *(f"  {name:24} dropped: {reason}" for name, reason in self.dropped.items())]
        )

    def to_json(self) -> dict[str, Any]:
        return {"timings": [asdict(timing) for timing in self.timings], "dropped": self.dropped}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Measured:
        numbers = ("seconds", "wall", "build", "again")
        timings = [
            Timing(TaskPlan(**entry["plan"]), *(float(entry[name]) for name in numbers))
            for entry in values["timings"]
        ]
        return Measured(timings, {str(name): str(reason) for name, reason in values["dropped"].items()})


def unmeasured(algorithm: Algorithm) -> TaskPlan:
    """How tasks are mapped where nothing was measured: all at once, if the method declares that they can
    be.
    """
    return TaskPlan("vmap" if "vmap" in algorithm.plans else "loop")


def here(plan: TaskPlan, limit: float | None) -> Attempt:
    """Nothing is compiled ahead: the first gradient does it, in this process."""
    return Attempt(0.0)


def tune(algorithm: Algorithm, batch: Batch, wish: Wish, *, steps: int, ahead: Ahead = here) -> Measured:
    """Time what the wish allows. Weights, `.grad` and running averages are left alone.

    batch: a meta-batch of the run. steps: outer steps of the run, by which compilation must pay for itself.
    ahead: fills the compiler's cache, so that what this process compiles then is quick.
    """
    actor = with_ordinary_norms(algorithm)
    refuse_impure(actor, batch)
    plan_check = PlanCheck(actor, batch)
    found = Measured()
    candidates = wish.candidates(batch.count)
    candidates = [plan for plan in candidates if plan.name in algorithm.plans]
    time_all(
        [executor for plan in candidates if (executor := _try(actor, plan, plan_check, found))], batch, found
    )
    if wish.compile is False:
        return found
    for plan in finalists(found.timings, found.best(steps)):
        limit = None if wish.compile is True else worth_spending(found.timings, plan, steps)
        if limit is not None and limit < SMALLEST_BUILD:
            allowed = f"{steps:,} outer steps allow {max(limit, 0.0):.0f} s for it"
            log.info(
                f"not compiled: {_plain(plan)}, as {allowed}, and it takes {SMALLEST_BUILD:.0f} s or more"
            )
            continue
        now = f"{steps:,} outer steps take {steps * found.best(steps).seconds:.0f} s as they are"
        log.info(
            f"compiling {_plain(plan)}"
            + ("" if limit is None else f" for at most {limit:.0f} s of processor time: {now}")
        )
        if _compile(actor, plan, plan_check, found, ahead, limit).ended:
            break
    if wish.compile is True:
        found.timings = [timing for timing in found.timings if timing.plan.compile]
        if not found.timings:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in found.dropped.items())
            raise ConfigError(
                f"device.compile=true, but no compiled plan works ({reasons}); use device.compile=auto or "
                "false"
            )
    return found


def worth_spending(timings: list[Timing], plan: TaskPlan, steps: int) -> float:
    """Seconds of processor time that compiling this plan may take: what so many steps with it save at best.

    What compiling gained for another plan of the same tasks says what it can gain for this one.
    """
    plain = {timing.plan: timing.seconds for timing in timings if not timing.plan.compile}
    gains = [plain[_plain(timing.plan)] / timing.seconds for timing in timings if timing.plan.compile]
    gain = min([MOST_GAIN, *(NEAR * gain for gain in gains)])
    saved = min(timing.seconds for timing in timings) - plain[_plain(plan)] / gain
    return steps * saved / (1 + REPEATED)


def _compile(
    actor: Algorithm,
    plan: TaskPlan,
    plan_check: PlanCheck,
    found: Measured,
    ahead: Ahead,
    limit: float | None,
) -> Attempt:
    """Compile a plan ahead and time it, or leave in `found` why not; either way a line says it."""
    attempt = ahead(plan, limit)
    if attempt.problem is not None and (limit is not None or attempt.refused):
        found.dropped[str(plan)] = attempt.problem
    else:
        # what hindered another process may not hinder this one, which was told to
        if attempt.problem is not None:
            log.warning(f"{plan}: {attempt.problem}; compiling it in this process")
        begin = _processor_seconds()
        executor = _try(actor, plan, plan_check, found)
        again = _processor_seconds() - begin
        if executor is not None:
            time_all([executor], plan_check.batch, found, build=attempt.seconds + again, again=again)
            last = found.timings[-1]
            log.info(
                f"compiled {_plain(plan)} in {last.build:.0f} s of processor time: {1000 * last.seconds:.2f} "
                "ms per gradient"
            )
            return attempt
    log.info(f"{plan} is dropped: {found.dropped[str(plan)]}")
    return attempt


def _plain(plan: TaskPlan) -> TaskPlan:
    return replace(plan, compile=False)


def _processor_seconds() -> float:
    """Of this process and of its children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def finalists(timings: list[Timing], fastest: Timing) -> list[TaskPlan]:
    """The plans to compile: the fastest, and the one that takes fewest tasks at once if it is near; each
    takes a minute.
    """
    leanest = min(timings, key=lambda timing: (timing.plan.name != "loop", timing.plan.chunk or math.inf))
    near = [leanest] if leanest is not fastest and leanest.seconds < NEAR * fastest.seconds else []
    return [replace(timing.plan, compile=True) for timing in (fastest, *near)]


def time_all(
    executors: list[Executor], batch: Batch, found: Measured, *, build: float = 0.0, again: float = 0.0
) -> None:
    """Interleaved, so that whatever else the machine does falls on all of them alike."""
    taken: list[list[tuple[float, float]]] = [[] for _ in executors]
    begin = time.perf_counter()
    for number in range(ROUNDS):
        if number and time.perf_counter() - begin > BUDGET:
            break
        for executor, times in zip(executors, taken, strict=True):
            times.append(_time(executor, batch))
    for executor, times in zip(executors, taken, strict=True):
        seconds, wall = (statistics.median(column) for column in zip(*times, strict=True))
        found.timings.append(Timing(executor.plan, seconds, wall, build, again))


def _time(executor: Executor, batch: Batch) -> tuple[float, float]:
    """Seconds of one gradient on a processor, as `Timing` means it, and by the clock."""
    start, used = time.perf_counter(), time.thread_time()
    losses = executor.sums(batch).losses
    if losses.is_cuda:
        torch.cuda.synchronize(losses.device)
    used, wall = time.thread_time() - used, time.perf_counter() - start
    return wall if losses.is_cuda else used, wall


def _try(actor: Algorithm, plan: TaskPlan, plan_check: PlanCheck, found: Measured) -> Executor | None:
    """An executor that gave the right gradient once, warm for timing; None, and the reason in `found`, if
    there is none.
    """
    executor = Executor(actor, plan)
    try:
        with unheard():  # the table says what became of it
            problem = plan_check.problem(executor)
    except (RuntimeError, MetalearnError) as error:  # vmap cannot map every operation, nor a compiler read it
        problem = explanation(error, actor) or str(error).strip().splitlines()[0] or type(error).__name__
    if problem is None and executor.plan != plan:
        problem = "out of memory"
    if problem is not None:
        found.dropped[str(plan)] = problem
        return None
    return executor
