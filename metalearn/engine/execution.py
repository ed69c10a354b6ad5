"""Mapping tasks: the plan that was chosen, and the one place that writes `.grad`.

`loop` takes one task at a time and differentiates inside the loop, so that its memory does not grow with
the meta-batch; `vmap` takes `chunk` tasks at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metalearn.core import Algorithm, Examples, Metrics, TaskBatch


@dataclass(frozen=True)
class TaskPlan:
    """name: how the tasks of a chunk are mapped. chunk: tasks per chunk under vmap; 0 means all at once."""

    name: Literal["loop", "vmap"] = "vmap"
    chunk: int = 0

    def map(self, function: Callable[..., Any], *batches: Any) -> Any:
        if self.name == "vmap":
            return torch.vmap(function)(*batches)
        count = first_leaf(batches).shape[0]
        results = [function(*tree_map(lambda leaf: leaf[i], batches)) for i in range(count)]
        return tree_map(lambda *leaves: torch.stack(leaves), *results)

    def chunks(self, tasks: TaskBatch) -> Iterator[TaskBatch]:
        count = len(tasks.key)
        size = 1 if self.name == "loop" else self.chunk or count
        for start in range(0, count, size):
            yield tree_map(lambda leaf: leaf[start : start + size], tasks)


def first_leaf(tree: Any) -> Tensor:
    return torch.utils._pytree.tree_leaves(tree)[0]


def execute(algorithm: Algorithm, batch: TaskBatch | Examples, plan: TaskPlan) -> tuple[Tensor, Metrics]:
    """Fill `.grad` with the mean gradient over the tasks; return the losses (T,) and mean metrics.

    A flat minibatch (`Examples`) is one chunk and is never split: batch-norm statistics span it.
    """
    learned = {name: p for name, p in algorithm.named_parameters() if p.requires_grad}
    # Detached, or autograd would record a second graph beside that of torch.func, and chain it from chunk to chunk.
    params = {name: p.detach() for name, p in learned.items()}
    chunks = [batch] if isinstance(batch, Examples) else plan.chunks(batch)
    total: dict[str, Tensor] = {}
    losses, metrics = [], []
    for chunk in chunks:
        grads, chunk_losses, chunk_metrics = algorithm.gradient(params, chunk, plan)
        total = {name: total[name] + g for name, g in grads.items()} if total else dict(grads)
        losses.append(chunk_losses)
        metrics.append(chunk_metrics)
    all_losses = torch.cat(losses)
    for name, p in learned.items():
        p.grad = total[name] / len(all_losses)
    mean = tree_map(lambda *leaves: torch.cat(leaves).mean(0), *metrics)
    return all_losses, mean
