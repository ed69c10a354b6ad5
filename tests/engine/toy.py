"""The smallest algorithm and source that the engine can run: estimate a task's mean, from a learned prior.

T tasks, S = Q = 3 rows of one number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metalearn.core import Algorithm, Draw, Examples, InputSpec, Source, Split, Task, TaskBatch, TaskSpec
from metalearn.engine.evaluate import EvalSpec
from metalearn.hashing import fold, normal
from metalearn.objectives import Regression

SPLITS = ("train", "val", "test")


def eval_spec(split: Split, seed: int, episodes: int, **more: Any) -> EvalSpec:
    """What a test asks of an evaluation. more: what differs from an evaluation that keeps no predictions, in
    batches as large as are fast.
    """
    rest = {"val_episodes": 8, "checkpoint": "best", "monitor": None, "chunk": None, "predictions": False}
    rest |= {"tasks": None, "anyway": False, "seeds": 1, "ci_target": None, "grid": None}
    return EvalSpec(split, seed, episodes, **(rest | more))


class ToySource(Source):
    """bad_tasks: numbers of the train tasks whose targets are not finite. limit: tasks per split, None for no
    end.
    """

    name = "toy"

    def __init__(self, *, bad_tasks: tuple[int, ...] = (), limit: int | None = None) -> None:
        self.bad_tasks, self.limit = bad_tasks, limit
        self.asked: list[tuple[str, int, int, int]] = []

    def spec(self, split: Split) -> TaskSpec:
        return TaskSpec("regression", Regression(), 1, InputSpec((1,)), support_size=3, query_size=3)

    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> Task:
        self.asked.append((split, seed, first, count))
        number = torch.arange(first, first + count)
        key = fold(seed, SPLITS.index(split), number)
        y = normal(key, (6, 1)) + 2.0
        bad = torch.tensor([split == "train" and int(n) in self.bad_tasks for n in number])
        y = torch.where(bad[:, None, None], torch.inf, y)
        x, mask = torch.zeros(count, 3, 1), torch.ones(count, 3, dtype=torch.bool)
        return TaskBatch(Examples(x, y[:, :3], mask), Examples(x, y[:, 3:], mask), key)

    def examples(self, *, seed: int, first: int, count: int) -> Examples:
        self.asked.append(("examples", seed, first, count))
        y = normal(fold(seed, torch.arange(first, first + count)), (1,))
        return Examples(torch.zeros(count, 1), y, torch.ones(count, dtype=torch.bool))

    def num_tasks(self, split: Split) -> int | None:
        return self.limit

    def protocol(self, split: Split) -> dict[str, Any]:
        return {"shot": 3}

    def fingerprint(self) -> str:
        return "0" * 64


class ToyAlgorithm(Algorithm):
    """Predicts prior + steps/(steps + 1) · (support mean − prior), plus a drawn number times `noise`."""

    adaptation_steps = 1
    eval_adaptation_steps = 3
    inner_lr = 0.5

    def __init__(self, *, noise: float = 0.0) -> None:
        super().__init__(ToySource().spec("train"))
        self.prior = nn.Parameter(torch.zeros(1))
        self.register_buffer("running", torch.zeros(1))
        self.noise = noise
        self.seen_query_y: list[bool] = []

    def draws(self, spec: TaskSpec) -> dict[str, Draw]:
        return {"noise": Draw("normal", (1,))}

    def adapt(self, task: Task, *, steps: int) -> dict[str, Tensor]:
        mean = task.support.y.mean(0) + self.noise * task.draws["noise"] + 0.0 * task.query.y.sum()
        return {"guess": self.prior + steps / (steps + 1) * (mean - self.prior)}

    def predict(self, adapted: dict[str, Tensor], x: Any, mask: Tensor) -> Tensor:
        return adapted["guess"] + 0.0 * x

    def task_loss(self, task: Task) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = super().task_loss(task)
        return loss, {**metrics, "statistics": (task.support.y.mean(0).detach(),)}

    def update_running(self, statistics: tuple[Tensor, ...]) -> None:
        self.running.lerp_(statistics[0], 0.1)
