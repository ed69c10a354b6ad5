"""Small hand-made task batches in float64, for checks of mathematics."""

from __future__ import annotations

import torch

from metalearn.core import Algorithm, Examples, InputSpec, Task, TaskBatch, TaskSpec
from metalearn.hashing import draw
from metalearn.objectives import Classification

IMAGE = InputSpec((1, 16, 16))


def image_spec(way: int = 3, shot: int = 2, query_shot: int = 2) -> TaskSpec:
    return TaskSpec(
        "classification", Classification(), way, IMAGE, way * shot, way * query_shot, way, num_train_classes=7
    )


def image_tasks(count: int, way: int = 3, shot: int = 2, query_shot: int = 2, seed: int = 0) -> Task:
    """Classes are random templates, rows are templates with noise: learnable, and never degenerate."""
    rng = torch.Generator().manual_seed(seed)
    templates = torch.rand(count, way, *IMAGE.shape, generator=rng, dtype=torch.float64)

    def examples(per_class: int) -> Examples:
        x = templates.repeat_interleave(per_class, dim=1)
        x = x + 0.3 * torch.rand(x.shape, generator=rng, dtype=torch.float64)
        y = torch.arange(way).repeat_interleave(per_class).expand(count, -1).clone()
        return Examples(x, y, torch.ones_like(y, dtype=torch.bool))

    return TaskBatch(examples(shot), examples(query_shot), torch.arange(count))


def with_draws(algorithm: Algorithm, tasks: Task) -> Task:
    return tasks._replace(draws=draw(tasks.key, algorithm.draws(algorithm.spec)))
