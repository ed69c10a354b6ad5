"""One workload from start to end: admit whoever gets the right result, time them in turns, and write down
what was found.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from metalearn.bench import measure
from metalearn.bench.case import Case, Options, Verdict, Work
from metalearn.bench.episodes import sampler_case
from metalearn.bench.training import evaluation_case, training_case
from metalearn.bench.workloads import Workload
from metalearn.engine.loader import LONGEST_BLOCK

LONGEST_SPLIT = 1.0  # seconds after which no further outer step is taken apart
COUNTED = "plain"  # the peer whose floating-point operations are the work that there is to be done


@dataclass
class Entrants:
    """works: of those whose result is right. errors: how far off it is. first: seconds of the first call,
    which compiles.

    refused: why the others do not take part. processes: ids of those that work for a system beside this one.
    """

    case: Case
    device: torch.device = measure.CPU
    works: dict[str, Work] = field(default_factory=dict)
    errors: dict[str, float | None] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    processes: dict[str, list[int]] = field(default_factory=dict)

    def attempt(self, name: str, action: Callable[[], Any]) -> Any:
        """What the action returns; None, and the reason in `refused`, if it fails."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # libraries speak of the Python and torch of their own time
                return action()
        except ModuleNotFoundError as error:
            self.refused[name] = f"not installed: {first_line(error)}"
        except Exception as error:  # noqa: BLE001 - a library may break in any way on another torch; the table says how
            self.refused[name] = first_line(error)
        return None

    def admit(self, name: str, work: Work | None, check: Callable[[Any], Verdict]) -> None:
        """Let it do the work once; it takes part if the result is right."""
        work = None if work is None else measure.settled(work, self.device)
        if work is not None and self.attempt(name, lambda: self._is_right(name, work, check)):
            self.works[name] = work

    def _is_right(self, name: str, work: Work, check: Callable[[Any], Verdict]) -> bool:
        results: list[Any] = []
        self.first[name] = measure.seconds_of(lambda: results.append(work()))
        problem, self.errors[name] = check(results[0])
        if problem is not None:
            self.refused[name] = problem
        return problem is None


def take(workload: Workload, options: Options) -> dict[str, Any]:
    """The record of a workload: JSON values."""
    with ExitStack() as stack:
        case = build_case(workload, options, stack)
        entrants = enter(case, options)
        device = entrants.device
        peak = measure.matmul_peak(device)
        seconds = measure.interleaved(entrants.works, options.repeats)
        peak = max(peak, measure.matmul_peak(device))
        memory = {
            name: measure.peak_mb(work, entrants.processes.get(name, ()), device)
            for name, work in entrants.works.items()
        }
        counts = workload.kind != "sampler" and COUNTED in entrants.works
        operations = measure.flops(entrants.works[COUNTED]) / case.tasks if counts else None
        record = {
            "title": workload.title,
            "tasks": case.tasks,
            "repeats": options.repeats,
            "threads": torch.get_num_threads(),
            "device": device.type,
            "matmul_precision": measure.matmul_precision(device),
            "systems": systems(entrants, seconds, memory),
            "refused": entrants.refused,
            **conclusions(entrants, seconds, operations, peak),
        }
        best = record["best_plan"]
        return {**record, "time_split_ms_per_task": split(case, best, options.repeats) if best else {}}


def build_case(workload: Workload, options: Options, stack: ExitStack) -> Case:
    if workload.kind == "sampler":
        return sampler_case(workload, options)
    if workload.kind == "evaluation":
        return evaluation_case(workload, options)
    return training_case(workload, options, stack)


def enter(case: Case, options: Options) -> Entrants:
    """Everyone whose result is right, after having done the work once."""
    entrants = Entrants(case, torch.device(options.device), refused=dict(case.absent))
    for name, make in {**case.peers, **case.plans}.items():
        entrants.admit(name, entrants.attempt(name, make), case.check)
    # All that compile are built before the first of them runs: building one makes torch forget what others
    # compiled.
    late = (
        {name: (entrants.attempt(name, make), case.check) for name, make in case.compiled.items()}
        if options.compile
        else {}
    )
    if case.check_lowered is not None:
        lowered = {
            name: make for name, make in case.lowered.items() if options.compile or "compiled" not in name
        }
        late |= {name: (entrants.attempt(name, make), case.check_lowered) for name, make in lowered.items()}
    quick = {name: measure.seconds_of(entrants.works[name]) for name in case.plans if name in entrants.works}
    share_among = case.ranked if options.ranks and quick else None
    if share_among is not None:
        ranked = entrants.attempt(
            "ranks", lambda: share_among(min(quick, key=quick.__getitem__), options.compile)
        )
        if ranked is not None:
            late[ranked.name], entrants.processes[ranked.name] = (ranked.work, ranked.check), ranked.processes
    for name, (work, check) in late.items():
        entrants.admit(name, work, check)
    return entrants


def systems(
    entrants: Entrants, seconds: dict[str, list[float]], memory: dict[str, float | None]
) -> dict[str, Any]:
    tasks = entrants.case.tasks
    return {
        name: {
            "ms_per_task": 1000 * statistics.median(taken) / tasks,
            "ms_per_task_range": [1000 * min(taken) / tasks, 1000 * max(taken) / tasks],
            "peak_mb": memory[name],
            "error": entrants.errors[name],
            "first_call_seconds": entrants.first[name],
            "ours": name not in entrants.case.peers,
        }
        for name, taken in seconds.items()
    }


def conclusions(
    entrants: Entrants, seconds: dict[str, list[float]], operations: float | None, peak: float
) -> dict[str, Any]:
    """operations: per task, None if there are none to count. peak: GFLOP/s of the machine."""
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    best_plan = min(
        (name for name in medians if name not in {*entrants.case.peers, *entrants.case.lowered}),
        key=medians.__getitem__,
        default=None,
    )
    best_peer = min(
        (name for name in medians if name in entrants.case.peers), key=medians.__getitem__, default=None
    )
    per_task = medians[best_plan] / entrants.case.tasks if best_plan else None
    gflops = operations / per_task / 1e9 if operations is not None and per_task else None
    return {
        "best_plan": best_plan,
        "best_peer": best_peer,
        "ratio": medians[best_peer] / medians[best_plan] if best_plan and best_peer else None,
        "ratios": {
            name: medians[name] / medians[best_plan]
            for name in medians
            if best_plan and name in entrants.case.peers
        },
        "tasks_per_second": 1 / per_task if per_task else None,
        "mflop_per_task": None if operations is None else operations / 1e6,
        "gflops": gflops,
        "matmul_peak_gflops": peak,
        "percent_of_peak": None if gflops is None else 100 * gflops / peak,
    }


def split(case: Case, name: str, repeats: int) -> dict[str, float]:
    """Milliseconds per task of the parts of an outer step: means, since tasks may be drawn for many steps at
    once.
    """
    step = case.split(name)
    step()  # which makes the optimizer's state
    rounds: list[dict[str, float]] = []
    while len(rounds) < repeats or (
        len(rounds) < LONGEST_BLOCK and sum(sum(times.values()) for times in rounds) < LONGEST_SPLIT
    ):
        rounds.append(step())
    return {part: 1000 * statistics.mean(times[part] for times in rounds) / case.tasks for part in rounds[0]}


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
