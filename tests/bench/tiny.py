"""Workloads of the benchmark made small enough for a test."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from metalearn.bench.case import Case, Options
from metalearn.bench.runner import build_case
from metalearn.bench.workloads import WORKLOADS, Workload

FAST = Options(repeats=1, threads=1, compile=False, ranks=False)


def tiny(name: str, cache: Path) -> Workload:
    """The workload with two tasks, four channels and no more characters than it needs, which are drawn into
    the folder `cache`. Four tasks at 20 ways: a kink of a ReLU may lie in the way of any two.
    """
    [workload] = [workload for workload in WORKLOADS if workload.name == name]
    drawn = (
        ("data.num_classes=240", "data.num_drawings=6")
        if "data.way=20" in workload.overrides
        else ("data.num_classes=60",)
    )
    small = (
        ()
        if "data=sinusoid" in workload.overrides
        else ("model.channels=4", f"data.cache_dir={cache}", *drawn)
    )
    if workload.name == "stride2_20w1s_5steps":
        small = (*small, "seed=1")  # with seed 0 rounding decides at a ReLU's kink, in each of its tasks
    if workload.kind == "evaluation":
        small = (*small, "algo.eval_adaptation_steps=3")
    tasks = 4 if workload.kind == "sampler" or "data.way=20" in workload.overrides else 2
    return replace(workload, overrides=(*workload.overrides, *small), tasks=tasks, chunks=(2,))


def case_of(name: str, cache: Path) -> Case:
    return build_case(tiny(name, cache), FAST, ExitStack())
