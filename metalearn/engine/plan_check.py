"""Whether a plan may be trusted: its losses and its gradient against those of `loop`, parameter by parameter.

A wrong second-order gradient passes every check of the loss. But two right gradients differ too, where
rounding is magnified: by much if a value lies within rounding of a ReLU's kink, of which a conv net with an
inner loop has millions, by less where an inner loop divides small numbers by small ones. So the weights are
moved by a few units in their last place, there and back, to find the tasks whose gradient that moves least. A
meta-batch of two of them in turns, so that tasks that leak into each other are seen, is what plans are judged
on, and what its gradient still moves by is allowed.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metalearn.core import Algorithm, Batch
from metalearn.engine.executor import Executor, Sums, TaskPlan
from metalearn.engine.explain import explained, pure
from metalearn.errors import ConfigError

# float32, relative to the norm of each parameter's gradient, and to the loss
GRADIENT_TOLERANCE, LOSS_TOLERANCE = (
    1e-4,
    1e-5,
)
# How far the weights are moved to see what rounding does, in units of the last place: what a sum of some
# thousand terms may be off by.
NUDGE = 64
MOST_PAIRS = 4  # of tasks that a plan may be proved on
# units of the last place of the largest gradient, by which any may differ: one that is truly zero is made of
# rounding alone
SLACK = 4
ROUNDINGS, LARGEST_TOLERANCE = 2.0, 3e-3  # tolerance in units of what that changes, and its limit


@dataclass(frozen=True)
class Reference:
    """What is right for a batch, and how far from it, relative to their sizes, losses and gradients may
    lie.
    """

    batch: Batch
    sums: Sums
    loss_tolerance: float
    tolerances: dict[str, float]

    @staticmethod
    def exact(batch: Batch, sums: Sums) -> Reference:
        """For who computes the same in the same way."""
        return Reference(batch, sums, LOSS_TOLERANCE, dict.fromkeys(sums.grads, GRADIENT_TOLERANCE))

    def mismatch(self, sums: Sums) -> str | None:
        """The first loss or parameter that differs by more than rounding; None if there is none."""
        gap = relative(sums.losses, self.sums.losses)
        if not gap <= self.loss_tolerance:
            return f"its losses differ from those of loop by {gap:.1e} of their size"
        for name, gap in gaps(sums, self.sums).items():
            if not gap <= self.tolerances[name]:
                return f"its gradient of {name} differs from that of loop by {gap:.1e} of its size"
        return None


class PlanCheck:
    """Whether a plan gives the losses and the gradient of `loop` on one of a few meta-batches made of two
    calm tasks.

    A right plan fails on some of them, where a kink was not found; a wrong one fails on all.
    """

    def __init__(self, actor: Algorithm, batch: Batch) -> None:
        self.actor, self.batch = in_full_precision(actor), batch

    @functools.cached_property
    def references(self) -> list[Reference]:
        return references_of(self.actor, self.batch)

    def problem(self, executor: Executor) -> str | None:
        """Why the plan is not to be trusted; None if it is. The executor has been used once then."""
        executor.sums(self.batch)
        if not self.references and executor.plan.name != "loop":
            return "no task of the first meta-batch has a finite gradient to compare with"
        judged = executor if executor.algorithm is self.actor else Executor(self.actor, executor.plan)
        first: str | None = None
        for reference in self.references:
            problem = reference.mismatch(judged.sums(reference.batch))
            if problem is None:
                return None
            first = first or problem
        return first


def references_of(actor: Algorithm, batch: Batch) -> list[Reference]:
    """What `loop` gives for meta-batches as large as this one, each of two of its tasks in turns, the calmest
    two first.

    Where tasks depend on those before them, it is the meta-batch itself. A flat minibatch is one task, and
    stays as it is. Tasks whose gradient is not finite are left out; if all are, there is no reference.
    """
    looped = [Executor(other, TaskPlan("loop")) for other in (actor, nudged(actor, 1), nudged(actor, -1))]
    if not actor.tasks_independent:
        return [reference_from(batch, *(executor.sums(batch) for executor in looped))]
    count, tasks = batch.count, list(batch.chunks(1))

    def movement(task: Batch) -> float:
        at_rest, *moved = (executor.sums(task) for executor in looped)
        return max((gap for sums in moved for gap in gaps(sums, at_rest).values()), default=0.0)

    movements = [movement(task) for task in tasks]
    order = [
        number for number in sorted(range(count), key=movements.__getitem__) if movements[number] < math.inf
    ]
    # One task alone only where there is no other, since no leak could be seen.
    pairs = [
        order[first : first + 2]
        for first in range(0, min(len(order), 2 * MOST_PAIRS), 2)
        if first + 1 < max(len(order), 2)
    ]
    return [reference_of([tasks[number] for number in pair], count, looped) for pair in pairs]


def reference_of(tasks: Sequence[Batch], count: int, looped: Sequence[Executor]) -> Reference:
    """Of a batch of so many tasks, which are these in turns. looped: `loop`, and `loop` with weights that
    were moved by a rounding.
    """
    batch = tree_map(
        lambda *leaves: torch.cat(leaves), *(tasks[place % len(tasks)] for place in range(count))
    )
    return reference_from(
        batch, *(in_turns([executor.sums(task) for task in tasks], count) for executor in looped)
    )


def reference_from(batch: Batch, sums: Sums, *moved: Sums) -> Reference:
    """What is right for a batch, allowed to differ by what moving the weights by a rounding changes."""
    changes = [gaps(other, sums) for other in moved]
    return Reference(
        batch,
        sums,
        tolerance(LOSS_TOLERANCE, [relative(other.losses, sums.losses) for other in moved]),
        {name: tolerance(GRADIENT_TOLERANCE, [change[name] for change in changes]) for name in sums.grads},
    )


def in_turns(parts: Sequence[Sums], count: int) -> Sums:
    """The sums of so many tasks, which are these in turns."""
    times = [len(range(place, count, len(parts))) for place in range(len(parts))]

    def total(*leaves: Tensor) -> Tensor:
        return torch.stack([number * leaf for number, leaf in zip(times, leaves, strict=True)]).sum(0)

    losses = torch.cat([parts[place % len(parts)].losses for place in range(count)])
    return Sums(
        tree_map(total, *(part.grads for part in parts)),
        losses,
        tree_map(total, *(part.metrics for part in parts)),
    )


def tolerance(least: float, changes: Sequence[float]) -> float:
    """changes: what moving the weights by a rounding changed."""
    return min(max(least, ROUNDINGS * max(changes)), LARGEST_TOLERANCE)


def gaps(sums: Sums, expected: Sums) -> dict[str, float]:
    """Per parameter, by how much of its size a gradient differs, beyond the rounding of the largest one.

    The size of what is nearly nothing is a millionth of the largest one.
    """
    largest = max((float(grad.norm()) for grad in expected.grads.values()), default=0.0)
    slack = SLACK * torch.finfo(expected.losses.dtype).eps * largest
    return {
        name: relative(sums.grads[name], grad, 1e-6 * largest, slack) for name, grad in expected.grads.items()
    }


def relative(values: Tensor, expected: Tensor, floor: float = 1e-12, slack: float = 0.0) -> float:
    """Norm of the difference, less `slack`, over the norm of what was expected, which counts as at least
    `floor`.

    Infinite for what is not finite.
    """
    gap = (float((values - expected).norm()) - slack) / max(float(expected.norm()), floor)
    return max(gap, 0.0) if math.isfinite(gap) else math.inf


def refuse_impure(actor: Algorithm, batch: Batch) -> None:
    """ConfigError if a method gives other losses for the same task and weights when it is asked again: no two
    plans could agree.
    """
    task = next(iter(batch.chunks(1)))
    executor = Executor(actor, TaskPlan("loop"))
    first, again = (executor.sums(task).losses.nan_to_num() for _ in range(2))
    if relative(again, first) <= LOSS_TOLERANCE:
        return
    with explained(actor), pure(actor):
        executor.sums(task)
    raise ConfigError(
        f"{type(actor).__name__} gives losses {float(first[0]):.6g} and {float(again[0]):.6g} for the same "
        "task and the same weights, "
        "so that it keeps something between tasks; return what it should remember as metrics['statistics'], "
        "and let `update_running` follow"
    )


def nudged(actor: Algorithm, sign: int) -> Algorithm:
    """A copy whose weights are NUDGE units of the last place away, each to a side of its own that `sign`
    turns.
    """
    copied = copy.deepcopy(actor)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in copied.parameters():
            sides = torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1
            p.mul_(1 + sign * NUDGE * torch.finfo(p.dtype).eps * sides)
    return copied


def with_ordinary_norms(algorithm: Algorithm) -> Algorithm:
    """A copy whose one-dimensional parameters are moved off their first values: an affine of (1, 0) hides
    errors.
    """
    actor = copy.deepcopy(algorithm)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in actor.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))
    return actor


def in_full_precision(actor: Algorithm) -> Algorithm:
    """The method with models that compute in the type of their parameters: what bfloat16 rounds away would
    hide a wrong gradient.
    """
    if all(getattr(module, "compute_dtype", None) is None for module in actor.modules()):
        return actor
    full = copy.deepcopy(actor)
    for module in full.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = None  # type: ignore[assignment]
    return full
