"""What a workload is once it is built: functions that do its work, ours and the peers', and the check that
all must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from metalearn.bench.peers import Answer
from metalearn.bench.workloads import Workload
from metalearn.build.device import build_device, prepare_host
from metalearn.build.objects import build_source
from metalearn.config.compose import compose
from metalearn.core import Source

Work = Callable[[], Any]  # once through all tasks of the workload
StepTimes = Callable[[], dict[str, float]]  # one outer step; seconds of each part


@dataclass(frozen=True)
class Options:
    """repeats: timings per system. threads: of every system, None for all cores. compile, ranks: whether our
    plans may use them. device: cpu or cuda.
    """

    repeats: int = 7
    threads: int | None = None
    compile: bool = True
    ranks: bool = True
    device: str = "cpu"


class Verdict(NamedTuple):
    """problem: what is wrong with a result, None if nothing is. error: its largest relative difference, None
    if it has none.
    """

    problem: str | None
    error: float | None = None


class Ranked(NamedTuple):
    """The work of a plan shared by several processes. check: its verdict. processes: the ids of those beside
    this one.
    """

    name: str
    work: Work
    check: Callable[[Any], Verdict]
    processes: list[int]


@dataclass(frozen=True)
class Case:
    """Systems are given as functions that build their work, since a library may be missing or break.

    check: the verdict on what a work returned. plans: ours, as they are; compiled: the same, through a
    compiler. lowered: ours in bfloat16, judged by check_lowered; none can be the best, as they do not compute
    the same.
    ranked: from the name of one of our plans, and whether to compile it, to the same in several processes.
    absent: peers that have nothing for this workload, and why. split: the parts of an outer step under one of
    our plans.
    """

    tasks: int
    check: Callable[[Any], Verdict]
    plans: dict[str, Callable[[], Work]]
    peers: dict[str, Callable[[], Work]]
    split: Callable[[str], StepTimes]
    compiled: dict[str, Callable[[], Work]] = field(default_factory=dict)
    lowered: Mapping[str, Callable[[], Work]] = field(default_factory=dict)
    check_lowered: Callable[[Any], Verdict] | None = None
    ranked: Callable[[str, bool], Ranked] | None = None
    absent: dict[str, str] = field(default_factory=dict)


def configure(workload: Workload, options: Options) -> tuple[dict[str, Any], Source, torch.device]:
    """The workload's configuration, source and device, after this process was set up for it as a run would
    be: peers get the same.
    """
    words = [
        *workload.overrides,
        f"device={options.device}",
        f"trainer.meta_batch_size={workload.tasks}",
        *([f"device.threads={options.threads}"] if options.threads else []),
    ]
    cfg = compose(words)
    prepare_host(cfg)
    device = build_device(cfg)
    return cfg, build_source(cfg, device), device


def agreement(answer: Answer, expected: Answer, tolerances: Mapping[str, float]) -> Verdict:
    """Whether an answer is the expected one, entry by entry, each within its tolerance relative to its size.

    The size of what is nearly nothing is a millionth of the largest one.
    """
    if set(answer) != set(expected):
        return Verdict(f"it gives {', '.join(sorted(answer))}; expected {', '.join(sorted(expected))}")
    floor = 1e-6 * max(float(values.norm()) for values in expected.values())
    worst = 0.0
    for name, values in expected.items():
        given = answer[name]
        if given is None or given.shape != values.shape:
            return Verdict(
                f"its {name} is {'missing' if given is None else tuple(given.shape)}; expected "
                f"{tuple(values.shape)}"
            )
        error = float((given - values).norm()) / max(float(values.norm()), floor)
        if not error <= tolerances[name]:  # also if it is not a number
            return Verdict(
                f"its {name} differs by {error:.1e} of its size; at most {tolerances[name]:.0e} can be "
                "rounding",
                error,
            )
        worst = max(worst, error)
    return Verdict(None, worst)
