"""The final evaluation of a run, and what it leaves to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metalearn.core import Task, blank_query
from metalearn.engine.crew import Crew
from metalearn.engine.evaluate import Evaluation, draw_tasks, frozen
from metalearn.run.parts import Parts


def judge_split(cfg: dict[str, Any], crew: Crew, on_batch: Callable[[int], None]) -> Evaluation:
    """The final evaluation that `eval.*` describes."""
    sizes = {name: cfg["eval"][name] for name in ("seed", "episodes", "batch_size")}
    return crew.evaluate(cfg["eval"]["split"], **sizes, on_batch=on_batch)


def draw_plots(cfg: dict[str, Any], parts: Parts, run_dir: Path) -> None:
    """plots/*.png: learning curve, adaptation curve, three episodes of the final split with their predictions."""
    from metalearn.analysis import plots, preview  # here, since other ranks, which draw nothing, would load matplotlib too

    plots.learning_curve(run_dir)
    plots.adaptation_curve(run_dir)
    algorithm, split = parts.algorithm, cfg["eval"]["split"]
    tasks = draw_tasks(algorithm, parts.source, split, seed=cfg["eval"]["seed"], first=0, count=3)

    def predict(task: Task) -> torch.Tensor:
        adapted = algorithm.adapt(blank_query(task), steps=algorithm.eval_adaptation_steps)
        return algorithm.predict(adapted, task.query.x, task.query.mask)

    with frozen(algorithm), torch.no_grad():
        preview.episodes(run_dir / "plots" / "episodes.png", tasks, parts.plan.map(predict, tasks), count=3)
