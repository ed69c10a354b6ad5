"""An outer step never asks the device for a value: each answer would make the host wait until everything
queued is done.

Without a GPU nothing waits, but the questions can be seen: every operation whose result the host must know,
or whose shape depends on values, is refused. tests/test_cuda.py lets the driver itself refuse them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.build.objects import build_optimizer, build_schedule
from metalearn.config.compose import compose
from metalearn.core import Algorithm, Source
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.history import RunningMeans
from metalearn.engine.strategy import SingleProcess
from metalearn.engine.update import Clip, Updater
from tests.engine.test_trainer import SETTINGS
from tests.plugins import SOURCES, in_memory, missing, source_of

OPTIMIZERS = sorted(
    path.stem for path in (Path(__file__).parents[2] / "conf" / "optimizer").glob("[!_]*.yaml")
)
ANSWERS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
COPIES = {
    Tensor.cpu,
    Tensor.numpy,
    Tensor.tolist,
    Tensor.__array__,
    torch.tensor,
    torch.as_tensor,
    torch.from_numpy,
}


class SyncError(Exception):
    """The host asked the device for a value."""


class OperationWatch(TorchDispatchMode):
    """Below everything: item, bool, float, int, nonzero, unique, equal and boolean indexing all end here."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
            # an index by a mask
            asks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        else:
            asks = not ANSWERS.isdisjoint(func.tags)
        if asks:
            raise SyncError(str(func))
        return func(*args, **(kwargs or {}))


class CopyWatch(TorchFunctionMode):
    """Above everything: on the CPU a copy to or from the host is no operation. From the host it waits too,
    unless memory is pinned.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in COPIES or (
            func is Tensor.to and any(torch.device("cpu") == torch.device(a) for a in words(args, kwargs))
        ):
            raise SyncError(func.__name__)
        return func(*args, **kwargs)


def words(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Devices that were written out; `x.to(y.device)` asks for nothing."""
    return [value for value in (*args[1:2], kwargs.get("device")) if isinstance(value, str)]


def watched() -> ExitStack:
    stack = ExitStack()
    stack.enter_context(OperationWatch())
    stack.enter_context(CopyWatch())
    return stack


def outer_step(strategy: SingleProcess, updater: Updater, running_means: RunningMeans, step: int) -> None:
    losses, metrics = strategy.execute(strategy.draw(step))
    statistics = metrics.pop("statistics", None)
    norm = updater.update(step, losses, statistics)
    running_means.add({"loss": losses.mean(), **metrics, "gradient_norm": norm}, updater.bad)


def train(algorithm: Algorithm, source: Source, optimizer: str, plan: TaskPlan, clip: Clip) -> None:
    """One step to fill caches, then two that are watched."""
    cfg = compose([f"optimizer={optimizer}"])
    actor = copy.deepcopy(algorithm)
    outer = build_optimizer(cfg, actor)
    assert outer is not None
    strategy = SingleProcess(
        actor, source, Executor(actor, plan), replace(SETTINGS, meta_batch_size=4, batch_size=12)
    )
    # as with trainer.on_nan=skip
    updater, running_means = (
        Updater(actor, outer, build_schedule(cfg), clip, limit=3),
        RunningMeans(),
    )
    outer_step(strategy, updater, running_means, 0)
    with watched():
        outer_step(strategy, updater, running_means, 1)
        outer_step(strategy, updater, running_means, 2)
    assert updater.bad_step.item() == -1 and running_means.count == 3


@pytest.mark.parametrize("plan", [TaskPlan("vmap", 2), TaskPlan("loop")], ids=str)
def test_an_outer_step_asks_the_device_for_nothing(plan: TaskPlan, pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    if algorithm.trains_on is None:
        return  # nothing to train
    train(algorithm, source, "adam", plan, Clip(norm=1.0))


@pytest.mark.parametrize("data", SOURCES)
def test_drawing_asks_the_device_for_nothing(data: str, folder: Path) -> None:
    """The random numbers of a method are drawn by an outer step, above."""
    if reason := missing(data):
        pytest.skip(reason)
    source = source_of(data, folder)

    def draw(first: int) -> None:
        source.tasks("train", seed=0, first=first, count=5)
        if source.spec("train").num_train_classes:
            source.examples(seed=0, first=first, count=5)

    draw(0)  # fills caches
    with watched():
        draw(10**6)  # another pass over the data


@pytest.mark.parametrize("clip", [Clip(), Clip(value=1.0)], ids=["free", "value"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_optimizer_asks_the_device_for_anything(optimizer: str, clip: Clip) -> None:
    train(*in_memory("protonet", "classification"), optimizer, TaskPlan("vmap"), clip)


QUESTIONS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "if": lambda x: 1 if x.any() else 0,
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "slice": lambda x: x[: x[0].long()],
    "range": lambda x: range(x[0].long()),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "tensor": lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
    "list": lambda x: x[[0, 1]],
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "assign": lambda x: x.index_put_((x > 0,), torch.ones(3)),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "bincount": lambda x: x.long().bincount(),
    "repeat": lambda x: x.repeat_interleave(x.long()),
}


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_every_question_is_seen(ask: Callable[[Tensor], Any]) -> None:
    with pytest.raises(SyncError), watched():
        ask(torch.tensor([1.0, 1.0, 1.0]))


@pytest.mark.parametrize("place", ["gradient", "draws", "update"])
def test_a_question_inside_a_step_is_seen(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, source = in_memory("reptile", "classification")
    owner = {"gradient": type(algorithm.objective), "draws": type(source), "update": Updater}[place]
    name = {"gradient": "loss", "draws": "tasks", "update": "_follow"}[place]
    usual = getattr(owner, name)

    def asking(*args: Any, **kwargs: Any) -> Any:
        bool(torch.ones(()))
        return usual(*args, **kwargs)

    monkeypatch.setattr(owner, name, asking)
    with pytest.raises(SyncError, match="_local_scalar_dense"):
        train(algorithm, source, "sgd", TaskPlan("vmap"), Clip())
