"""CAVIA (Zintgraf, Shiarlis, Kurin, Hofmann & Whiteson 2019, arXiv:1810.03642), algorithm 1.

Only context parameters are adapted to a task: they are inputs of the network, start at 0 for every task and
take inner_lr steps on the support (eq. 3); the network itself is learned across tasks through those steps
(eq. 4). Where they enter is the model's: model=mlp and user_item read them beside the inputs of the first
layer, in model=conv4 they scale and shift the third block (FiLM).
Deviation: the scale is 1 + γ where the authors' is γ, so that a network whose biases start at 0 is alive.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metalearn.algorithms.maml import MAML
from metalearn.core import Parameters, Task, TaskSpec

CONTEXT = "model.context"


class CAVIA(MAML):
    """num_context: context parameters of a task. order: as in MAML."""

    def __init__(
        self,
        model: nn.Module,
        spec: TaskSpec,
        *,
        num_context: int,
        inner_lr: float,
        adaptation_steps: int,
        eval_adaptation_steps: int,
        order: int,
    ) -> None:
        if num_context < 1:
            raise ValueError(
                f"algo.num_context={num_context}, but context parameters are all that is adapted; take 1 or "
                "more"
            )
        if not hasattr(model, "add_context"):
            raise ValueError(
                f"algo=cavia needs a model with a place for context parameters, which {type(model).__name__} "
                "has not; choose model=conv4, mlp or user_item, or define its add_context(num_context)"
            )
        model.add_context(num_context)
        super().__init__(
            model,
            spec,
            inner_lr=inner_lr,
            adaptation_steps=adaptation_steps,
            eval_adaptation_steps=eval_adaptation_steps,
            order=order,
            adapts=CONTEXT,
            inner_loss="mean",
            warmup_steps=0,
            proximal=0.0,
        )
        self.num_context = num_context

    def protocol(self) -> dict[str, Any]:
        return {"order": self.order, "inner_lr": self.inner_lr, "num_context": self.num_context}

    def start(self, task: Task) -> Parameters:
        """φ = 0."""
        return {name: torch.zeros_like(value) for name, value in super().start(task).items()}
