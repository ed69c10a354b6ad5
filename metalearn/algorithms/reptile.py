"""Reptile (Nichol, Achiam & Schulman 2018, arXiv:1803.02999), algorithm 1, with the authors' inner Adam.

Adapt by minibatch Adam (beta1 = 0) on the support; the outer "gradient" is the mean of initial minus adapted weights,
so that outer SGD with lr = epsilon is the paper's update. Deviation: the second moment starts at zero for every
task, where the original carries it from task to task.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metalearn.algorithms.network import NetworkAlgorithm
from metalearn.core import Draw, Examples, Metrics, Parameters, Plan, Task, TaskBatch, TaskSpec
from metalearn.functional import minibatch_adam


class Reptile(NetworkAlgorithm):
    """inner_batch_size and eval_inner_batch_size: support rows per inner step."""

    def __init__(
        self,
        model: nn.Module,
        spec: TaskSpec,
        *,
        inner_lr: float,
        adaptation_steps: int,
        eval_adaptation_steps: int,
        inner_batch_size: int,
        eval_inner_batch_size: int,
    ) -> None:
        super().__init__(model, spec)
        self.inner_lr = inner_lr
        self.adaptation_steps, self.eval_adaptation_steps = adaptation_steps, eval_adaptation_steps
        self.inner_batch_size, self.eval_inner_batch_size = inner_batch_size, eval_inner_batch_size

    def check(self, spec: TaskSpec) -> None:
        super().check(spec)
        if spec.ragged:
            raise ValueError("algo=reptile draws minibatches from a support of fixed size, but these tasks are ragged; choose algo=maml")

    def protocol(self) -> dict[str, Any]:
        return {"inner_lr": self.inner_lr, "inner_batch_size": self.inner_batch_size, "eval_inner_batch_size": self.eval_inner_batch_size}

    def draws(self, spec: TaskSpec) -> dict[str, Draw]:
        rows = max(self.adaptation_steps * self.inner_batch_size, self.eval_adaptation_steps * self.eval_inner_batch_size)
        return {"order": Draw("permutation", (ceil(rows / spec.support_size), spec.support_size))}

    def descend(self, task: Task, steps: int, batch_size: int) -> tuple[Parameters, Tensor]:
        """Weights after `steps` minibatches of the shuffled support, and the mean loss on the way."""
        order = task.draws["order"].flatten()
        batch_size = min(batch_size, len(task.support.y))

        def loss(weights: Parameters, step: int) -> Tensor:
            rows = order[step * batch_size : (step + 1) * batch_size]
            return self.support_loss(weights, Examples(*tree_map(lambda leaf: leaf[rows], tuple(task.support))))

        return minibatch_adam(loss, dict(self.named_parameters()), lr=self.inner_lr, steps=steps)

    def adapt(self, task: Task, *, steps: int) -> dict[str, Any]:
        weights, _ = self.descend(task, steps, self.eval_inner_batch_size)
        return self.prepare(weights, task)

    def gradient(self, params: Parameters, tasks: TaskBatch | Examples, how: Plan) -> tuple[Parameters, Tensor, Metrics]:
        def displacement(task: Task) -> tuple[Parameters, Tensor]:
            weights, loss = self.call(params, "descend", task, self.adaptation_steps, self.inner_batch_size)
            return {name: params[name] - weights[name] for name in params}, loss

        moved, losses = how.map(displacement, tasks)
        return {name: move.sum(0) for name, move in moved.items()}, losses, {}
