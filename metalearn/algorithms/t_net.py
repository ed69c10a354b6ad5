"""T-Net and MT-Net (Lee & Choi 2018, arXiv:1801.05558), §3: every layer is T·(W·x + b), and T is not adapted.

W and b are what the inner loop changes; T, a square matrix over the layer's outputs (a 1x1 convolution after
a convolution), is learned across tasks alone and starts as the identity, which is MAML. A step on W moves the
outputs by T·Tᵀ times their gradient: T is a metric in which tasks are told apart.
masks (MT-Net): a task moves only those outputs of a layer that a mask, drawn for it with learned odds, lets
through, each by its row of W and its element of b. As in the authors' code the mask is 0 or 1, a draw of
Gumbel-softmax at temperature 1 whose gradient is that of the soft one, and the odds start even.
Deviation: norms, which have no T and no mask, are adapted as well (the authors' code adapts W and b only).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.algorithms.base import learned_beside
from metalearn.algorithms.maml import MAML
from metalearn.core import Draw, Inputs, Parameters, Task, TaskSpec
from metalearn.functional import descend


class TNet(MAML):
    """masks: MT-Net. transforms_lr: the outer rate of T and of the odds; None takes the common one. A
    convolution in groups has no T, which would mix outputs that see other inputs.
    """

    def __init__(
        self, model: nn.Module, spec: TaskSpec, *, masks: bool, transforms_lr: float | None, **dials: Any
    ) -> None:
        super().__init__(model, spec, **dials)
        layers = {
            name: layer
            for name, layer in self.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and getattr(layer, "groups", 1) == 1
        }
        # the parameters of each layer: W, and b where it has one
        self.layers = [
            [f"{name}.{key}" for key, _ in layer.named_parameters()] for name, layer in layers.items()
        ]
        self.widths = [len(layer.weight) for layer in layers.values()]
        self.transforms = nn.ParameterList(torch.eye(width) for width in self.widths)
        # of letting an output through, against not
        self.log_odds = nn.ParameterList(torch.zeros(width) for width in self.widths if masks)
        self.masks, self.transforms_lr = masks, transforms_lr

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "masks": self.masks}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return learned_beside(self, [*self.transforms, *self.log_odds], lr=self.transforms_lr)

    def draws(self, spec: TaskSpec) -> dict[str, Draw]:
        return {"masks": Draw("uniform", (sum(self.widths),))} if self.masks else {}

    def network(
        self, x: Inputs, given: Any = None, mask: Tensor | None = None, step: int | Tensor = 0
    ) -> tuple[Tensor, Any]:
        """The network with T·W and T·b for W and b."""
        transformed = {
            name: torch.tensordot(transform, w, 1)
            for names, transform in zip(self.layers, self.transforms, strict=True)
            for name, w in self.present(names).items()
        }
        prediction: tuple[Tensor, Any] = self.call(
            transformed, "plain_network", x, given=given, mask=mask, step=step
        )
        return prediction

    def plain_network(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        return super().network(*args, **kwargs)

    def adapt_path(self, task: Task, *, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        if not self.masks:
            return super().adapt_path(task, counts=counts)
        masks = self.drawn_masks(task)

        move = self.updates()

        def update(weights: Parameters, grads: Parameters, step: int) -> Parameters:
            let_through = {name: masks[name] * g if name in masks else g for name, g in grads.items()}
            return move(weights, let_through, step)

        start = self.start(task)
        path = descend(
            lambda weights, step: self.task_inner_loss(weights, start, task, step),
            start,
            update,
            counts=counts,
            first_order=self.first_order(),
        )
        return (self.prepare(weights, task, step) for step, weights in zip(counts, path, strict=True))

    def drawn_masks(self, task: Task) -> Parameters:
        """What the gradient of each W and b of this task is multiplied by, one number per output."""
        drawn = task.draws["masks"].split(self.widths)
        masks: Parameters = {}
        for names, log_odds, uniform in zip(self.layers, self.log_odds, drawn, strict=True):
            # the difference of two Gumbel variables is logistic
            soft = torch.sigmoid(log_odds + torch.logit(uniform, eps=1e-7))
            mask = soft + ((soft > 0.5).to(soft.dtype) - soft).detach()
            masks |= {name: mask.view(-1, *[1] * (w.ndim - 1)) for name, w in self.present(names).items()}
        return masks
