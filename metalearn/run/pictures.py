"""The pictures of an evaluation: curves, a few episodes, and the tasks that went worst."""

from __future__ import annotations

from pathlib import Path

import torch

from metalearn.build.parts import Parts
from metalearn.core import Task, TaskBatch, blank_query, leaves_of, rebuilt
from metalearn.engine.evaluate import EvalSpec, Evaluation, draw_numbered, frozen

WORST = 8  # tasks


def draw_plots(parts: Parts, spec: EvalSpec, result: Evaluation, run_dir: Path) -> None:
    """plots/*.png: learning curve, adaptation curve, three episodes of the final split with their
    predictions; and worst_<split>.png.
    """
    # here, since other ranks, which draw nothing, would load matplotlib too
    from metalearn.report import plots

    plots.learning_curve(run_dir)
    plots.adaptation_curve(run_dir)
    tasks = draw_numbered(parts.algorithm, parts.source, spec, first=0, count=min(3, result.episodes))
    draw_answered(parts, tasks, run_dir / "plots" / "episodes.png")
    draw_worst(parts, spec, result, run_dir)


def draw_worst(parts: Parts, spec: EvalSpec, result: Evaluation, folder: Path) -> None:
    """worst_<split>.png: the eight tasks with the worst primary metric, the worst first."""
    objective = parts.source.spec(spec.split).objective
    scores = result.columns[objective.primary]
    order = sorted(range(len(scores)), key=lambda task: scores[task], reverse=not objective.higher_is_better)
    worst = order[:WORST]
    batches = [draw_numbered(parts.algorithm, parts.source, spec, first=task, count=1) for task in worst]
    tasks: TaskBatch = rebuilt(batches[0], map(torch.cat, zip(*map(leaves_of, batches), strict=True)))
    draw_answered(parts, tasks, folder / f"worst_{spec.split}.png", numbers=worst)


def draw_answered(parts: Parts, tasks: TaskBatch, path: Path, numbers: list[int] | None = None) -> None:
    """The tasks with what the algorithm predicts for their queries. numbers: what titles call the tasks."""
    from metalearn.report import episodes

    algorithm = parts.algorithm

    def predict(task: Task) -> torch.Tensor:
        adapted = algorithm.adapt(blank_query(task), steps=algorithm.eval_adaptation_steps)
        return algorithm.predict(adapted, task.query.x, task.query.mask)

    with frozen(algorithm), torch.no_grad():
        predictions = parts.plan.map(predict, tasks)
    episodes.episodes(path, tasks, predictions, count=len(tasks.key), numbers=numbers)
