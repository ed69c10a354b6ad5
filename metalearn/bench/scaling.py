"""How costs grow: time per task against the number of tasks, and against the adaptation steps, as numbers and
as a plot.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.bench import measure
from metalearn.bench.case import Options, Work
from metalearn.bench.report import columns, number
from metalearn.bench.training import Ours
from metalearn.bench.workloads import Workload
from metalearn.engine.executor import TaskPlan
from metalearn.report.style import BLUE, GREEN, GREY, save

TASKS = (4, 8, 16, 32, 64)
STEPS = (1, 2, 4, 7, 10)
TASKS_OF_STEPS = 4  # tasks with which the steps are counted
LOOKS = ((BLUE, "o", "-"), (GREEN, "s", "-"), (GREY, "^", "-"))  # colour, marker and line of each plan

Curve = dict[str, dict[int, float]]  # plan → size → milliseconds per task


def curves(workload: Workload, options: Options) -> dict[str, Any]:
    """JSON values: both curves, by how much a task costs more among many, and how straight the line through
    the steps is.
    """
    with ExitStack() as stack:
        plans = [TaskPlan("loop"), fastest(workload, options, stack)]
        more = [replace(plans[1], compile=True)] if options.compile else []
        tasks = timed(
            {
                (str(plan), count): (plan, sized(workload, tasks=count))
                for plan in plans + more
                for count in TASKS
            },
            options,
            stack,
        )
        by_steps = {
            (str(plan), steps): (plan, sized(workload, steps=steps)) for plan in plans for steps in STEPS
        }
        steps = timed(by_steps, options, stack)
    return {
        "workload": workload.name,
        "tasks": tasks,
        "steps": steps,
        "rise_percent": {plan: rise(curve) for plan, curve in tasks.items()},
        "line": {plan: line(curve) for plan, curve in steps.items()},
    }


def sized(workload: Workload, *, tasks: int = TASKS_OF_STEPS, steps: int = 1) -> Workload:
    return replace(workload, tasks=tasks, overrides=(*workload.overrides, f"algo.adaptation_steps={steps}"))


def fastest(workload: Workload, options: Options, stack: ExitStack) -> TaskPlan:
    """Of the plans that map tasks without a compiler."""
    ours = Ours(sized(workload, tasks=max(TASKS)), options, stack)
    plans = {name: plan for name, plan in ours.plans.items() if plan.name == "vmap"}
    seconds = measure.interleaved(
        {name: measure.settled(ours.gradient(plan), ours.device) for name, plan in plans.items()}, repeats=3
    )
    return plans[min(plans, key=lambda name: statistics.median(seconds[name]))]


def timed(
    wanted: Mapping[tuple[str, int], tuple[TaskPlan, Workload]], options: Options, stack: ExitStack
) -> Curve:
    """Every point takes its turn in every round, so that a curve bends for its own reasons only."""
    works: dict[str, Work] = {}
    for (name, size), (plan, workload) in wanted.items():
        ours = Ours(workload, options, stack)
        works[f"{name} {size}"] = measure.settled(ours.gradient(plan), ours.device)
    for name, work in works.items():
        if "compiled" in name:
            work()  # the first call compiles, which may happen only after all were built
    seconds = measure.interleaved(works, options.repeats)
    found: Curve = {name: {} for name, _ in wanted}
    for (name, size), (_, workload) in wanted.items():
        found[name][size] = 1000 * statistics.median(seconds[f"{name} {size}"]) / workload.tasks
    return found


def rise(curve: Mapping[int, float]) -> float:
    """The most, in percent, that a task costs more than it did among fewer tasks; negative if it only ever
    falls.
    """
    sizes = sorted(curve)
    return max(100 * (curve[b] / curve[a] - 1) for i, a in enumerate(sizes) for b in sizes[i + 1 :])


def line(curve: Mapping[int, float]) -> dict[str, float]:
    """Least squares: milliseconds of a step and of the rest of a task, and the largest deviation from the
    line in percent.
    """
    slope, rest = statistics.linear_regression(list(curve), list(curve.values()))
    off = max(abs(ms - (rest + slope * steps)) / (rest + slope * steps) for steps, ms in curve.items())
    return {"ms_per_step": slope, "ms_besides": rest, "largest_deviation_percent": 100 * off}


def table(found: Mapping[str, Any]) -> str:
    """Both curves as text."""
    lines = [f"scaling: {found['workload']}, ms per task"]
    for title, curve, remark in (
        ("tasks", found["tasks"], rise_remark),
        ("adaptation steps", found["steps"], line_remark),
    ):
        sizes = list(next(iter(curve.values())))
        rows = [[title, *map(str, sizes), ""]]
        rows += [
            [plan, *(number(points[size]) for size in sizes), remark(found, plan)]
            for plan, points in curve.items()
        ]
        lines += columns(rows)
    return "\n".join(lines)


def rise_remark(found: Mapping[str, Any], plan: str) -> str:
    return f"largest rise {found['rise_percent'][plan]:+.0f}%"


def line_remark(found: Mapping[str, Any], plan: str) -> str:
    fit = found["line"][plan]
    return (
        f"{number(fit['ms_per_step'])} ms a step, at most {fit['largest_deviation_percent']:.0f}% off a line"
    )


def plot(found: Mapping[str, Any], path: Path) -> Path:
    """Left: time per task against tasks, flat is good. Right: against adaptation steps, straight is good."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, found["tasks"], "tasks per outer step")
    left.set_xscale("log", base=2)
    left.set_xticks(TASKS, [str(count) for count in TASKS])
    draw(right, found["steps"], "adaptation steps")
    for plan, fit in found["line"].items():
        ends = [0, max(STEPS)]
        colour = LOOKS[list(found["line"]).index(plan)][0]
        right.plot(
            ends,
            [fit["ms_besides"] + fit["ms_per_step"] * end for end in ends],
            ":",
            color=colour,
            linewidth=1,
        )
    right.set_xlim(left=0)
    figure.suptitle(
        f"Outer gradient of {found['workload']}; dotted: straight lines through the points", fontsize=10
    )
    return save(figure, path)


def draw(axis: Axes, curve: Curve, size: str) -> None:
    for (plan, points), (colour, marker, dash) in zip(curve.items(), LOOKS, strict=False):
        axis.plot(list(points), list(points.values()), dash, marker=marker, color=colour, label=plan)
    axis.set_xlabel(size)
    axis.set_ylabel("ms per task")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
