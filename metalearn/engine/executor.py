"""Mapping tasks: the plan that was chosen, and the one place that writes `.grad`.

`loop` takes one task at a time and differentiates inside the loop, so that its memory does not grow with
the meta-batch; `vmap` takes `chunk` tasks at once. Either may be compiled: the whole pure gradient of a chunk
becomes one graph, so that second order survives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metalearn.core import (
    Algorithm,
    Batch,
    Metrics,
    Parameters,
    Task,
    TaskBatch,
    leaves_of,
    map_leaves,
    rebuilt,
)
from metalearn.engine.compiler_cache import drop_half_written
from metalearn.engine.memory import first_line, is_out_of_memory
from metalearn.errors import ConfigError, MetalearnError

log = logging.getLogger(__name__)

Gradient = Callable[[Parameters, Batch], tuple[Parameters, Tensor, Metrics]]

# of one line of code, which all plans and chunk sizes of a process share; beyond it the compiler gives up
MOST_BUILDS = 64


@dataclass(frozen=True)
class TaskPlan:
    """name: how the tasks of a chunk are mapped. chunk: tasks per chunk under vmap; 0 means all at once."""

    name: Literal["loop", "vmap"] = "vmap"
    chunk: int = 0
    compile: bool = False

    def __str__(self) -> str:
        size = f" chunk {self.chunk}" if self.name == "vmap" and self.chunk else ""
        return f"{self.name}{size}{' compiled' if self.compile else ''}"

    def map(self, function: Callable[..., Any], *batches: Any) -> Any:
        batches = tuple([Task(*batch) if isinstance(batch, TaskBatch) else batch for batch in batches])
        if self.name == "vmap":
            # A flat list of tensors is all that vmap has to go through; it takes as long for a nested one as
            # for a small network.
            return torch.vmap(lambda *leaves: function(*rebuilt(batches, leaves)))(*leaves_of(batches))
        count = len(next(leaves_of(batches)))
        if count == 1:
            return map_leaves(lambda leaf: leaf[None], function(*map_leaves(lambda leaf: leaf[0], batches)))
        results = [function(*map_leaves(lambda leaf: leaf[i], batches)) for i in range(count)]
        return tree_map(lambda *leaves: torch.stack(leaves), *results)

    def chunk_of(self, num_tasks: int) -> int:
        """How many of so many tasks are taken at once."""
        return 1 if self.name == "loop" else min(self.chunk or num_tasks, num_tasks)


class Sums(NamedTuple):
    """What a batch of T tasks gives: gradient and metrics summed over the tasks, and their losses (T,).

    Chunks, and ranks, are added up in float64: in which order makes no difference that float32 would show.
    """

    grads: Parameters
    losses: Tensor
    metrics: Metrics


class Executor:
    """Runs a plan over batches of tasks, chunk by chunk.

    plan: the present one; a chunk that does not fit into memory is halved, with a warning.
    """

    def __init__(self, algorithm: Algorithm, plan: TaskPlan) -> None:
        self.algorithm = algorithm
        self.plan = plan
        self.compiled = self._compiled() if plan.compile else None

    def execute(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Fill `.grad` with the mean gradient over the tasks; return the losses (T,) and mean metrics."""
        sums = self.sums(batch)
        return sums.losses, self.write(sums)

    def sums(self, batch: Batch) -> Sums:
        """Pure."""
        while True:
            try:
                return self._sums(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = first_line(error)
            self._halve(batch, problem)  # after the handler, which holds on to the tensors of the attempt

    def write(self, sums: Sums) -> Metrics:
        """Set `.grad` to the mean gradient over the tasks; return the mean metrics."""
        count = len(sums.losses)
        means = (
            dict(zip(sums.grads, torch._foreach_div(list(sums.grads.values()), count), strict=True))
            if sums.grads
            else {}
        )
        for name, p in self.algorithm.named_parameters():
            if name in means:
                grad = means[name].to(p.dtype)
                # The fused optimizers walk through memory: where the layouts differ they are silently wrong
                # on the CPU.
                p.grad = grad if grad.stride() == p.stride() else torch.empty_like(p).copy_(grad)
        dtype = sums.losses.dtype
        mean: Metrics = map_leaves(lambda total: (total / count).to(dtype), sums.metrics)
        return mean

    def _sums(self, batch: Batch) -> Sums:
        # Detached, or a graph would be chained from chunk to chunk.
        params = {name: p.detach() for name, p in self.algorithm.named_parameters() if p.requires_grad}
        size = self.plan.chunk_of(batch.count) if self.algorithm.tasks_independent else batch.count
        chunks = list(batch.chunks(size))
        losses: list[Tensor] = []
        totals: list[Tensor] = []
        for chunk in chunks:
            if self.compiled is not None:
                grads, chunk_losses, metrics = self.compiled(params, chunk)
            else:
                grads, chunk_losses, metrics = self.algorithm.gradient(params, chunk, self.plan)
            losses.append(chunk_losses)
            part = (grads, map_leaves(lambda leaf: leaf.sum(0), metrics))
            if len(chunks) == 1:
                return Sums(part[0], chunk_losses, part[1])
            if totals:
                torch._foreach_add_(totals, list(leaves_of(part)))
            else:
                totals = [leaf.double() for leaf in leaves_of(part)]
        grads, metrics = rebuilt(part, totals)
        return Sums(grads, torch.cat(losses), metrics)

    def _gradient(self, params: Parameters, chunk: Batch) -> tuple[Parameters, Tensor, Metrics]:
        return self.algorithm.gradient(params, chunk, self.plan)

    def _compiled(self) -> Gradient:
        from torch._dynamo.exc import TorchDynamoException  # here, since loading the compiler takes a second

        drop_half_written()
        # it warns of a missing GPU on every CPU
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_BUILDS)
        on_cuda = any(p.is_cuda for p in self.algorithm.parameters())
        compiled = torch.compile(
            self._gradient, fullgraph=True, dynamic=False, mode="reduce-overhead" if on_cuda else None
        )

        def gradient(params: Parameters, chunk: Batch) -> tuple[Parameters, Tensor, Metrics]:
            try:
                result = compiled(params, chunk)
            except TorchDynamoException as error:
                # A first line such as "backend='inductor' raised:" says nothing; the second is why.
                lines = [line.strip() for line in str(error).strip().splitlines()]
                why = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
                reason = f"{type(error).__name__}: {why}"
                raise ConfigError(
                    f"device.compile=true, but this run cannot be compiled ({reason}); use "
                    "device.compile=false"
                ) from error
            # A CUDA graph writes the results of the next chunk into the same memory.
            return tree_map(torch.clone, result) if on_cuda else result

        return gradient

    def _halve(self, batch: Batch, problem: str) -> None:
        chunk = self.plan.chunk_of(batch.count)
        if chunk == 1:
            flat = self.algorithm.trains_on == "examples"
            what = "one minibatch (trainer.batch_size)" if flat else "a single task"
            raise MetalearnError(
                f"out of memory with {what}: {problem}; choose a smaller model, fewer rows or fewer "
                "adaptation steps"
            )
        self.plan = replace(self.plan, chunk=chunk // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # blocks of the old chunk's sizes are in the way of smaller ones
        log.warning(
            f"out of memory with {chunk} tasks at once; going on with device.chunk={chunk // 2}, the "
            "meta-batch is the same"
        )


def execute(algorithm: Algorithm, batch: Batch, plan: TaskPlan) -> tuple[Tensor, Metrics]:
    """One batch with a plan of its own: fill `.grad`, return the losses (T,) and mean metrics."""
    return Executor(algorithm, plan).execute(batch)
