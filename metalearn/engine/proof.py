"""Whether a plan may be trusted: its losses and its gradient against those of `loop`, parameter by parameter.

A wrong second-order gradient passes every check of the loss. But two right gradients differ too, where rounding is magnified: by much on
a task in which a value lies within rounding of a ReLU's kink, by less where an inner loop divides small numbers by small ones. So the
weights are moved by a few units in their last place, there and back: plans are judged on the tasks whose gradient that moves least, and
what it still moves by is allowed.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metalearn.core import Algorithm, Examples, TaskBatch
from metalearn.engine.execution import Executor, Sums, TaskPlan

Batch = TaskBatch | Examples
Batches = Sequence[Batch]

GRADIENT_TOLERANCE, LOSS_TOLERANCE = 1e-4, 1e-5  # float32, relative to the norm of each parameter's gradient, and to the loss
# How far the weights are moved to see what rounding does, in units of the last place: what a sum of some thousand terms may be off by.
NUDGE = 64
ROUNDINGS, LARGEST_TOLERANCE = 2.0, 3e-3  # tolerance in units of what that changes, and its limit


@dataclass(frozen=True)
class Reference:
    """What `loop` gives for a batch, and how far from it, relative to their sizes, losses and gradients may lie."""

    batch: Batch
    sums: Sums
    loss_tolerance: float
    tolerances: dict[str, float]

    def mismatch(self, sums: Sums) -> str | None:
        """The first loss or parameter that differs by more than rounding; None if there is none."""
        gap = relative(sums.losses, self.sums.losses)
        if not gap <= self.loss_tolerance:
            return f"its losses differ from those of loop by {gap:.1e} of their size"
        for name, gap in gaps(sums, self.sums).items():
            if not gap <= self.tolerances[name]:
                return f"its gradient of {name} differs from that of loop by {gap:.1e} of its size"
        return None


class Proof:
    """Whether a plan gives the losses and the gradient of `loop` on the calmest tasks of some meta-batches."""

    def __init__(self, actor: Algorithm, batches: Batches) -> None:
        self.actor = in_full_precision(actor)
        self.batches = batches

    @functools.cached_property
    def reference(self) -> Reference:
        return reference_of(self.actor, self.batches)

    def problem(self, executor: Executor) -> str | None:
        """Why the plan is not to be trusted; None if it is. The executor has been used once then."""
        executor.sums(self.batches[0])
        judged = executor if executor.algorithm is self.actor else Executor(self.actor, executor.plan)
        return self.reference.mismatch(judged.sums(self.reference.batch))


def reference_of(actor: Algorithm, batches: Batches) -> Reference:
    """As many tasks as a meta-batch has, those in which rounding is magnified least, with what `loop` gives for them.

    A flat minibatch counts as one task.
    """
    looped = [Executor(other, TaskPlan("loop")) for other in (actor, nudged(actor, 1), nudged(actor, -1))]
    wanted = 1 if isinstance(batches[0], Examples) else len(batches[0].key)

    def movement(task: Batch) -> float:
        at_rest, *moved = (executor.sums(task) for executor in looped)
        return max(gap for sums in moved for gap in gaps(sums, at_rest).values())

    tasks = list(single_tasks(batches))
    movements = [movement(task) for task in tasks]
    calmest = sorted(range(len(tasks)), key=movements.__getitem__)[:wanted]
    batch = tree_map(lambda *leaves: torch.cat(leaves), *(tasks[number] for number in sorted(calmest)))
    sums, *moved = (executor.sums(batch) for executor in looped)
    changes = [gaps(other, sums) for other in moved]
    return Reference(
        batch,
        sums,
        tolerance(LOSS_TOLERANCE, [relative(other.losses, sums.losses) for other in moved]),
        {name: tolerance(GRADIENT_TOLERANCE, [change[name] for change in changes]) for name in sums.grads},
    )


def tolerance(least: float, changes: Sequence[float]) -> float:
    """changes: what moving the weights by a rounding changed."""
    return min(max(least, ROUNDINGS * max(changes)), LARGEST_TOLERANCE)


def single_tasks(batches: Batches) -> Iterator[Batch]:
    """Batches of one task each; a flat minibatch stays whole."""
    for batch in batches:
        if isinstance(batch, Examples):
            yield batch
        else:
            yield from TaskPlan("loop").chunks(batch)


def gaps(sums: Sums, expected: Sums) -> dict[str, float]:
    """Per parameter, by how much of its size a gradient differs. The size of what is nearly nothing is a millionth of the largest one."""
    floor = 1e-6 * max(float(grad.norm()) for grad in expected.grads.values())
    return {name: relative(sums.grads[name], grad, floor) for name, grad in expected.grads.items()}


def relative(values: Tensor, expected: Tensor, floor: float = 1e-12) -> float:
    """Norm of the difference over the norm of what was expected, which counts as at least `floor`."""
    return float((values - expected).norm()) / max(float(expected.norm()), floor)


def nudged(actor: Algorithm, sign: int) -> Algorithm:
    """A copy whose weights are NUDGE units of the last place away, each to a side of its own that `sign` turns."""
    copied = copy.deepcopy(actor)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in copied.parameters():
            sides = torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1
            p.mul_(1 + sign * NUDGE * torch.finfo(p.dtype).eps * sides)
    return copied


def with_ordinary_norms(algorithm: Algorithm) -> Algorithm:
    """A copy whose one-dimensional parameters are moved off their first values: an affine of (1, 0) hides errors."""
    actor = copy.deepcopy(algorithm)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in actor.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))
    return actor


def in_full_precision(actor: Algorithm) -> Algorithm:
    """The method with models that compute in the type of their parameters: what bfloat16 rounds away would hide a wrong gradient."""
    if all(getattr(module, "compute_dtype", None) is None for module in actor.modules()):
        return actor
    full = copy.deepcopy(actor)
    for module in full.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = None  # type: ignore[assignment]
    return full
