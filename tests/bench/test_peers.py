"""Nobody is timed whose result is not ours: every peer's loss and gradient against those of our loop, and
planted faults.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.bench import peers
from metalearn.bench.runner import enter
from metalearn.bench.training import LOWERED_GRADIENT, LOWERED_LOSS, Ours, verdict
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.plan_check import Reference

from .tiny import FAST, case_of, tiny

PEERS = {"plain", "higher", "torchopt", "torchopt vmap", "learn2learn"}
TRAINING = [
    "sinusoid",
    "stride2_5w1s",
    "maxpool_5w1s_15q",
    "stride2_20w1s_5steps",
    "anil",
    "first_order_stride2_5w1s",
]
# TorchOpt's example maps batch norm with an adapted affine, whose second derivatives vmap gets wrong.
WRONG = {("torchopt vmap", name) for name in ("stride2_5w1s", "maxpool_5w1s_15q", "stride2_20w1s_5steps")}


def library(peer: str) -> str | None:
    """The package that a peer needs."""
    return None if peer == "plain" else peer.split()[0]


@pytest.mark.parametrize("workload", [*TRAINING, "protonet", "evaluation"])
def test_everyone_agrees_or_is_refused_for_a_known_reason(cache: Path, workload: str) -> None:
    case = case_of(workload, cache)
    found = enter(case, FAST)
    assert {"plain", "loop", "vmap chunk 2"} <= set(found.works), found.refused
    assert set(case.peers) | set(case.absent) == PEERS
    for peer in case.peers:
        package = library(peer)
        if package is not None and find_spec(package) is None:
            assert found.refused[peer].startswith("not installed: ModuleNotFoundError: ")
        elif (peer, workload) in WRONG:
            assert "its gradient of model." in found.refused[peer]
        else:
            assert peer in found.works, found.refused


def test_the_answers_of_one_system_survive_the_runs_of_the_others(cache: Path) -> None:
    case = case_of("stride2_5w1s", cache)
    found = enter(case, FAST)
    for _ in range(2):
        for name, work in found.works.items():
            assert case.check(work()).problem is None, name


class TestPlantedFaults:
    """Each is one that leaves the loss as it is, or nearly so."""

    @staticmethod
    def refused(cache: Path, change: dict[str, Any], peer: Callable[..., Any] = peers.plain) -> str:
        case = case_of("stride2_5w1s", cache)
        problem = case.peers["plain"].args[0]  # type: ignore[attr-defined]
        wrong = replace(problem, **change)
        case = replace(case, peers={"wrong": lambda: peers.meta_gradient(wrong, peer(wrong))}, ranked=None)
        found = enter(case, FAST)
        assert "wrong" not in found.works
        return found.refused["wrong"]

    def test_second_order_dropped(self, cache: Path) -> None:
        assert self.refused(cache, {"first_order": True}).startswith(
            "its gradient of model.convs.0.weight differs by "
        )

    def test_another_inner_rate(self, cache: Path) -> None:
        assert self.refused(cache, {"inner_lr": 0.1001}).startswith("its loss differs by ")

    def test_a_step_too_many(self, cache: Path) -> None:
        assert "differs by" in self.refused(cache, {"steps": 2})

    def test_a_loss_that_is_not_a_number(self, cache: Path) -> None:
        problem = self.refused(cache, {"loss": lambda prediction, y: prediction.sum() * torch.nan})
        assert problem.startswith("its loss differs by nan")

    def test_no_gradient_for_the_body(self, cache: Path) -> None:
        def detached(problem: peers.Problem) -> peers.Adapting:
            @contextmanager
            def adapting(x: Any, y: Any) -> Any:
                with peers.plain(problem)(x, y) as predict:
                    yield (
                        lambda query: (
                            predict(query).detach()
                            + problem.predict(problem.network.parameters, query).sum() * 0
                        )
                    )

            return adapting

        assert "gradient" in self.refused(cache, {}, detached)

    def test_an_answer_of_another_shape(self, cache: Path) -> None:
        case = case_of("sinusoid", cache)
        answer = {**case.plans["loop"]()(), "loss": torch.zeros(1)}
        assert case.check(answer).problem == "its loss is (1,); expected (2,)"
        del answer["loss"]
        assert str(case.check(answer).problem).startswith("it gives gradient of head.bias, ")


def test_what_is_not_installed_or_breaks_is_named_with_its_reason(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "higher", None)
    case = case_of("sinusoid", cache)

    def broken() -> Any:
        raise AttributeError("module 'numpy' has no attribute 'bool8'")

    case.peers["learn2learn"] = broken
    found = enter(case, FAST)
    assert found.refused["higher"].startswith("not installed: ModuleNotFoundError: ")
    assert found.refused["learn2learn"] == "AttributeError: module 'numpy' has no attribute 'bool8'"
    assert {"plain", "loop", "vmap chunk 2"} <= set(found.works)


def test_bfloat16_is_measured_against_the_same_reference(cache: Path) -> None:
    """As on CUDA, where it takes part."""
    with ExitStack() as stack:
        ours = Ours(tiny("stride2_5w1s", cache), FAST, stack)
        plan = TaskPlan("vmap")
        exact = Reference.exact(ours.batch, Executor(ours.algorithm, plan).sums(ours.batch))
        found = ours.lowered(plan)()
        loose = replace(
            exact,
            loss_tolerance=LOWERED_LOSS,
            tolerances=dict.fromkeys(exact.tolerances, LOWERED_GRADIENT),
        )
        problem, error = verdict(loose, found)
        assert problem is None
        assert error is not None and error > 1e-4
        assert verdict(exact, found).problem is not None
