"""Joint pre-training, the baseline of MAML (Finn, Abbeel & Levine 2017, arXiv:1703.03400, §5.1).

One model for all tasks, trained without an inner step, as in ordinary supervised learning; when it is judged,
it is fine-tuned by gradient steps on the support of a task.
Trained on the query rows of every task: their supports are left out, so that a query means the same as in the
methods that it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from metalearn.algorithms.maml import MAML
from metalearn.core import TaskSpec


class Joint(MAML):
    """MAML without an inner step. inner_lr, eval_adaptation_steps and adapts are those of the fine-tuning."""

    def __init__(
        self,
        model: nn.Module,
        spec: TaskSpec,
        *,
        inner_lr: float,
        eval_adaptation_steps: int,
        adapts: str | Sequence[str],
    ) -> None:
        super().__init__(
            model,
            spec,
            inner_lr=inner_lr,
            adaptation_steps=0,
            eval_adaptation_steps=eval_adaptation_steps,
            order=1,
            adapts=adapts,
            inner_loss="mean",
            warmup_steps=0,
            proximal=0.0,
        )

    def protocol(self) -> dict[str, Any]:
        return {"inner_lr": self.inner_lr, "adapts": self.adapts}
