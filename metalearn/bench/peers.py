"""How others compute the same: a plain loop over `torch.autograd.grad`, and the libraries as their
documentation uses them.

A peer of gradient-based methods is a function of a `Problem` that returns `adapting(x, y)`: a context in
which one task's support is adapted to, giving the function that predicts. The loops over tasks below are
shared by all peers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.bench.plain_networks import PlainNetwork, Weights

# "loss" (T,), and "gradient of NAME" or "accuracy" (T,): what systems must agree about
Answer = dict[str, Tensor]
Run = Callable[[], Answer]
Predict = Callable[[Tensor], Tensor]
Adapting = Callable[[Tensor, Tensor], AbstractContextManager[Predict]]


class Tensors(NamedTuple):
    """A batch of T tasks without masks: inputs (T, n, …) and targets (T, n) or (T, n, 1)."""

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor


@dataclass(frozen=True)
class Problem:
    """What a peer has to compute, in tensors and plain PyTorch.

    head_only: only the head is adapted, so that the body's features are computed once per task (ANIL).
    first_order: no second derivative. steps: of gradient descent with rate inner_lr on the mean loss of the
    support.
    """

    network: PlainNetwork
    batch: Tensors
    loss: Callable[[Tensor, Tensor], Tensor]
    inner_lr: float
    steps: int
    first_order: bool = False
    head_only: bool = False

    @property
    def num_tasks(self) -> int:
        return len(self.batch.support_x)

    def tasks(self) -> Iterator[tuple[Tensor, ...]]:
        """Support inputs and targets, query inputs and targets of one task after the other."""
        return zip(*self.batch, strict=True)

    @property
    def adapted(self) -> nn.Module:
        """The part that the inner loop changes."""
        return self.network.head if self.head_only else nn.Sequential(self.network.body, self.network.head)

    def before(self, x: Tensor) -> Tensor:
        """What the part that is adapted gets to see of an input."""
        return self.network.features(list(self.network.body.parameters()), x) if self.head_only else x

    def predict(self, weights: Weights, x: Tensor) -> Tensor:
        """The part that is adapted, as a function of its weights."""
        return F.linear(
            x if self.head_only else self.network.features(weights[:-2], x), weights[-2], weights[-1]
        )


def plain(problem: Problem) -> Adapting:
    weights = list(problem.adapted.parameters())

    @contextmanager
    def adapting(x: Tensor, y: Tensor) -> Iterator[Predict]:
        fast: Weights = weights
        for _ in range(problem.steps):
            loss = problem.loss(problem.predict(fast, x), y)
            grads = torch.autograd.grad(loss, fast, create_graph=not problem.first_order)
            fast = [torch.sub(w, g, alpha=problem.inner_lr) for w, g in zip(fast, grads, strict=True)]
        yield lambda query: problem.predict(fast, query)

    return adapting


def higher(problem: Problem) -> Adapting:
    import higher

    module = problem.adapted
    optimizer = torch.optim.SGD(module.parameters(), lr=problem.inner_lr)
    options = {"copy_initial_weights": False, "track_higher_grads": not problem.first_order}

    @contextmanager
    def adapting(x: Tensor, y: Tensor) -> Iterator[Predict]:
        with higher.innerloop_ctx(module, optimizer, **options) as (fast, inner):
            for _ in range(problem.steps):
                inner.step(problem.loss(fast(x), y))
            yield fast
            # the fast weights are leaves of their own, whose gradient stands for that of the
            # first ones
            if problem.first_order:
                for w, f in zip(module.parameters(), fast.parameters(), strict=True):
                    w.grad = f.grad if w.grad is None else w.grad + f.grad if f.grad is not None else w.grad

    return adapting


def torchopt(problem: Problem) -> Adapting:
    """MetaSGD, which always records second derivatives; without them its functional interface."""
    return torchopt_functional(problem) if problem.first_order else torchopt_meta(problem)


def torchopt_meta(problem: Problem) -> Adapting:
    import torchopt

    module = problem.adapted
    optimizer = torchopt.MetaSGD(module, lr=problem.inner_lr)
    first_weights = torchopt.extract_state_dict(module, by="reference")
    first_state = torchopt.extract_state_dict(optimizer, by="reference")

    @contextmanager
    def adapting(x: Tensor, y: Tensor) -> Iterator[Predict]:
        for _ in range(problem.steps):
            optimizer.step(problem.loss(module(x), y))
        yield module
        torchopt.recover_state_dict(module, first_weights)
        torchopt.recover_state_dict(optimizer, first_state)

    return adapting


def torchopt_functional(problem: Problem) -> Adapting:
    import torchopt

    module = problem.adapted
    optimizer = torchopt.sgd(lr=problem.inner_lr)
    weights = dict(module.named_parameters())

    @contextmanager
    def adapting(x: Tensor, y: Tensor) -> Iterator[Predict]:
        fast, state = tuple(weights.values()), optimizer.init(tuple(weights.values()))

        def predict(fast: tuple[Tensor, ...], x: Tensor) -> Tensor:
            prediction: Tensor = torch.func.functional_call(module, dict(zip(weights, fast, strict=True)), x)
            return prediction

        for _ in range(problem.steps):
            grads = torch.autograd.grad(problem.loss(predict(fast, x), y), fast, create_graph=False)
            updates, state = optimizer.update(grads, state, inplace=False)
            fast = torchopt.apply_updates(fast, updates, inplace=False)
        yield lambda query: predict(fast, query)

    return adapting


def learn2learn(problem: Problem) -> Adapting:
    import learn2learn

    maml = learn2learn.algorithms.MAML(problem.adapted, lr=problem.inner_lr, first_order=problem.first_order)

    @contextmanager
    def adapting(x: Tensor, y: Tensor) -> Iterator[Predict]:
        learner = maml.clone()
        for _ in range(problem.steps):
            learner.adapt(problem.loss(learner(x), y))
        yield learner

    return adapting


def meta_gradient(problem: Problem, adapting: Adapting) -> Run:
    """Losses of the queries, and the gradient of their mean, one task after the other: the graph of one task
    is alive at a time.
    """
    weights = dict(zip(problem.network.names, problem.network.parameters, strict=True))

    def run() -> Answer:
        forget(weights)
        losses = []
        for sx, sy, qx, qy in problem.tasks():
            with adapting(problem.before(sx), sy) as predict:
                loss = problem.loss(predict(problem.before(qx)), qy)
                (loss / problem.num_tasks).backward()
            losses.append(loss.detach())
        return {"loss": torch.stack(losses), **gradients(weights)}

    return run


def torchopt_vmap(problem: Problem) -> Run:
    """All tasks at once, as in TorchOpt's example for functorch."""
    import torchopt

    module, optimizer = problem.adapted, torchopt.sgd(lr=problem.inner_lr)
    weights: dict[str, Tensor] = dict(module.named_parameters())
    named = dict(zip(problem.network.names, problem.network.parameters, strict=True))

    def loss_of(fast: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return problem.loss(torch.func.functional_call(module, fast, x), y)

    def task_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        fast, state = weights, optimizer.init(weights)
        sx, qx = problem.before(sx), problem.before(qx)
        for _ in range(problem.steps):
            with torch.set_grad_enabled(not problem.first_order):
                grads = torch.func.grad(loss_of)(fast, sx, sy)
            updates, state = optimizer.update(grads, state, inplace=False)
            fast = torchopt.apply_updates(fast, updates, inplace=False)
        return loss_of(fast, qx, qy)

    def run() -> Answer:
        forget(named)
        losses: Tensor = torch.func.vmap(task_loss)(*problem.batch)
        losses.mean().backward()
        return {"loss": losses.detach(), **gradients(named)}

    return run


def judgement(problem: Problem, adapting: Adapting) -> Run:
    """Loss and accuracy of the queries after adaptation, without a graph that outlives a step."""

    def run() -> Answer:
        losses, accuracies = [], []
        for sx, sy, qx, qy in problem.tasks():
            with adapting(problem.before(sx), sy) as predict, torch.no_grad():
                logits = predict(problem.before(qx))
                losses.append(problem.loss(logits, qy))
                accuracies.append((logits.argmax(-1) == qy).to(logits.dtype).mean())
        return {"loss": torch.stack(losses), "accuracy": torch.stack(accuracies)}

    return run


def forget(weights: Mapping[str, Any]) -> None:
    for w in weights.values():
        w.grad = None


def gradients(weights: Mapping[str, Any]) -> Answer:
    return {f"gradient of {name}": w.grad for name, w in weights.items()}
