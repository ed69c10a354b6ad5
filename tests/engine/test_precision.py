"""device.precision=bfloat16, device.deterministic and device.channels_last: what changes, and what stays as
it is.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalearn.build import instantiate, objects
from metalearn.build.device import prepare_host
from metalearn.build.objects import build_algorithm, build_source
from metalearn.config.compose import compose
from metalearn.core import Algorithm, Source
from metalearn.engine.autotune import Wish, tune
from metalearn.engine.evaluate import draw_tasks, evaluate
from metalearn.engine.executor import Executor, Sums, TaskPlan
from metalearn.errors import ConfigError
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.rundir.state import pack, restore
from metalearn.testing.algorithms import Trial
from tests.engine.toy import eval_spec
from tests.plugins import METHODS, class_of, in_memory

LOW = torch.bfloat16


class Types(TorchDispatchMode):
    """Types of the floating-point arguments of each kind of operation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [
            leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]
        self.found.setdefault(name, set()).update(tensor.dtype for tensor in tensors)
        return func(*args, **(kwargs or {}))


def lowered(algorithm: Algorithm) -> Algorithm:
    actor = copy.deepcopy(algorithm)
    actor.model.lower(LOW)
    return actor


@pytest.mark.parametrize("plan", [TaskPlan("vmap"), TaskPlan("loop")], ids=str)
def test_model_computes_in_bfloat16_and_all_around_it_in_float32(
    plan: TaskPlan, pair: tuple[Algorithm, Source]
) -> None:
    algorithm, source = pair
    if algorithm.trains_on is None:
        return  # nothing to train
    actor, batch = lowered(algorithm), Trial(algorithm, source).batch()
    with Types() as seen:
        sums = Executor(actor, plan).sums(batch)
    if source.spec("train").kind == "classification":
        assert seen.found["convolution"] == seen.found["convolution_backward"] == {LOW}
    else:
        assert any(LOW in seen.found.get(product, set()) for product in ("addmm", "mm", "bmm", "baddbmm"))
    for statistic in ("var_mean", "_log_softmax", "_log_softmax_backward_data", "rsqrt", "topk"):
        assert LOW not in seen.found.get(statistic, set()), statistic
    assert {leaf.dtype for leaf in tree_leaves(tuple(sums)) if leaf.is_floating_point()} <= {
        torch.float32,
        torch.float64,
    }
    assert_near(sums, Executor(algorithm, plan).sums(batch))


def assert_near(low: Sums, full: Sums) -> None:
    torch.testing.assert_close(low.losses, full.losses, rtol=0.05, atol=0.05)
    assert not torch.equal(low.losses, full.losses), "nothing was computed in bfloat16"
    low_all, full_all = (torch.cat([grad.flatten() for grad in sums.grads.values()]) for sums in (low, full))
    assert torch.cosine_similarity(low_all, full_all, dim=0) > 0.8


def test_weights_statistics_and_scores_stay_in_float32(pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    if source.spec("train").kind != "classification" or algorithm.trains_on is None:
        return
    actor = lowered(algorithm)
    with Types() as seen:
        low, full = (
            evaluate(some, source, eval_spec("val", seed=0, episodes=6, chunk=6), plan=TaskPlan("vmap"))
            for some in (actor, algorithm)
        )
    assert seen.found["convolution"] == {LOW, torch.float32}
    assert low.summary["loss"]["mean"] == pytest.approx(full.summary["loss"]["mean"], abs=0.3)
    before, after = algorithm.state_dict(), actor.state_dict()
    assert {name: value.dtype for name, value in before.items()} == {
        name: value.dtype for name, value in after.items()
    }
    _, statistics = actor.model(source.tasks("val", seed=0, first=0, count=1).support.x[0])
    # chunks are added up in float64
    assert {value.dtype for value in tree_leaves(statistics)} <= {
        torch.float32,
        torch.float64,
    }


def test_plans_are_compared_in_float32_and_timed_in_bfloat16() -> None:
    algorithm, source = in_memory("maml", "classification")
    actor = lowered(algorithm)
    actor.adaptation_steps, actor.inner_lr = 2, 0.4
    with Types() as seen:
        found = tune(
            actor,
            draw_tasks(actor, source, "train", seed=0, first=0, count=3),
            Wish("auto", 0, False),
            steps=10,
        )
    assert found.dropped == {}
    assert seen.found["convolution"] == {LOW, torch.float32}
    assert actor.model.compute_dtype == LOW


@pytest.fixture
def host() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


def test_configuration_lowers_the_model_and_nothing_else(host: None, tmp_path: Path) -> None:
    cfg = compose(["data=sinusoid", "device=cpu", "device.precision=bfloat16"])
    prepare_host(cfg)
    assert torch.get_default_dtype() == torch.float32
    algorithm = build_algorithm(cfg, build_source(cfg, torch.device("cpu")), torch.device("cpu"))
    assert algorithm.model.compute_dtype == LOW
    # chunks are added up in float64
    assert {p.dtype for p in algorithm.parameters()} <= {
        torch.float32,
        torch.float64,
    }


def test_model_that_cannot_be_lowered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose(["data=sinusoid", "device=cpu", "device.precision=bfloat16"])
    usual = instantiate.construct
    monkeypatch.setattr(
        objects,
        "construct",
        lambda cfg, group, **given: torch.nn.Linear(1, 1) if group == "model" else usual(cfg, group, **given),
    )
    with pytest.raises(
        ConfigError, match=r"bfloat16 needs a model derived from metalearn\.models\.Model, not Linear"
    ):
        build_algorithm(cfg, build_source(cfg, torch.device("cpu")), torch.device("cpu"))


def test_determinism_is_set_for_one_job_and_not_for_the_next(
    host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    prepare_host(compose(["device=cpu", "device.deterministic=true"]))
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    prepare_host(compose(["device=cpu"]))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if "classification" in class_of(m).kinds and class_of(m).trains_on is not None],
)
def test_channels_last_changes_no_gradient_and_no_update_and_survives_a_checkpoint(
    method: str, tmp_path: Path
) -> None:
    algorithm, source = in_memory(method, "classification")
    plain, moved = copy.deepcopy(algorithm), copy.deepcopy(algorithm).to(memory_format=torch.channels_last)
    assert any(not p.is_contiguous() for p in moved.parameters())
    batch, ends = Trial(algorithm, source).batch(), []
    for actor, resumed in ((plain, False), (moved, False), (copy.deepcopy(moved), True)):
        optimizer = torch.optim.Adam(actor.parameters(), lr=0.01, fused=True)
        for step in range(3):
            Executor(actor, TaskPlan("vmap", 2)).execute(batch)
            assert all(p.grad.stride() == p.stride() for p in actor.parameters() if p.grad is not None)
            optimizer.step()
            if resumed and step == 1:
                tensors, values = pack(actor, optimizer)
                CheckpointStore(tmp_path).save(2, tensors, {"optimizer": values})
                actor = copy.deepcopy(algorithm).to(memory_format=torch.channels_last)
                optimizer = torch.optim.Adam(actor.parameters(), lr=0.01, fused=True)
                restore(actor, optimizer, CheckpointStore(tmp_path).load(2).tensors, values)
        ends.append(dict(actor.named_parameters()))
    for name, expected in ends[0].items():
        torch.testing.assert_close(ends[1][name], expected, rtol=1e-2, atol=2e-3)
        assert torch.equal(ends[2][name], ends[1][name]), f"{name} after a checkpoint"


def test_configuration_puts_channels_last(tmp_path: Path) -> None:
    words = [
        "data=glyphs",
        "data.num_classes=48",
        "data.num_drawings=6",
        "data.way=3",
        "data.query_shot=2",
        f"data.cache_dir={tmp_path}",
    ]
    for word, expected in (("device.channels_last=true", True), ("device.channels_last=false", False)):
        cfg = compose([*words, "device=cpu", word])
        algorithm = build_algorithm(cfg, build_source(cfg, torch.device("cpu")), torch.device("cpu"))
        assert any(not p.is_contiguous() for p in algorithm.parameters()) is expected
