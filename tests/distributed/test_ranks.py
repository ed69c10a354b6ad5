"""Several ranks compute what one process computes. Each rank is a fork of this process that has the weights,
and gloo is real.
"""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from metalearn.build.objects import build_algorithm, build_optimizer, build_source
from metalearn.config.compose import compose
from metalearn.core import Algorithm, Source
from metalearn.distributed.launch import connected
from metalearn.distributed.strategy import EVALUATE, Link, LostError, MultiProcess, RankError, serve
from metalearn.engine import batching
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.settings import Settings, share_of
from metalearn.engine.strategy import SingleProcess
from metalearn.engine.update import Clip, Updater
from tests.engine.test_pooling import PoolingSource
from tests.engine.test_trainer import SETTINGS
from tests.engine.toy import ToyAlgorithm, ToySource, eval_spec
from tests.reliability import harness

CPU = torch.device("cpu")


def together(ranks: int, part: Callable[[Link], Any], place: Path) -> Any:
    """What rank 0 gives back. Every rank is a process that calls `part` with its link to the others."""
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            torch.set_num_threads(1)
            with connected(dist.FileStore(str(place / "store"), ranks), rank, ranks, CPU):
                result = part(Link(rank, ranks, CPU, LostError))
            if rank == 0:
                torch.save(result, place / "result")
            code = 0
        except BaseException:  # noqa: BLE001 - the child must not return into pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    assert [harness.wait(child) for child in children] == [0] * ranks
    return torch.load(place / "result", weights_only=True)


def with_others(
    algorithm: Algorithm, source: Source, settings: Settings, lead: Callable[[SingleProcess], Any]
) -> Callable[[Link], Any]:
    """`lead` on rank 0, orders on the others, whose weights are made useless first."""

    def part(link: Link) -> Any:
        executor = Executor(algorithm, TaskPlan("vmap", 2))
        if link.rank > 0:
            with torch.no_grad():
                for tensor in (*algorithm.parameters(), *algorithm.buffers()):
                    tensor.copy_(torch.full_like(tensor, 3))
            return serve(algorithm, source, executor, settings, link)
        strategy = MultiProcess(algorithm, source, executor, settings, link, lambda: None)
        result = lead(strategy)
        strategy.dismiss()
        return result

    return part


def alone(
    algorithm: Algorithm, source: Source, settings: Settings, lead: Callable[[SingleProcess], Any]
) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return lead(SingleProcess(algorithm, source, Executor(algorithm, TaskPlan("vmap", 2)), settings))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


def built(place: Path, *overrides: str) -> tuple[dict[str, Any], Algorithm, Source, Settings]:
    return assembled(harness.configuration(place, "trainer.meta_batch_size=5", *overrides))


def assembled(cfg: dict[str, Any]) -> tuple[dict[str, Any], Algorithm, Source, Settings]:
    source = build_source(cfg, CPU)
    return cfg, build_algorithm(cfg, source, CPU), source, Settings.of(cfg)


def one_step(strategy: SingleProcess) -> dict[str, Any]:
    losses, metrics = strategy.execute(strategy.draw(4))
    return {
        "losses": losses.clone(),
        "metrics": metrics,
        "grads": {name: p.grad for name, p in strategy.algorithm.named_parameters() if p.grad is not None},
    }


def training(cfg: dict[str, Any], steps: int) -> Callable[[SingleProcess], list[Tensor]]:
    def train(strategy: SingleProcess) -> list[Tensor]:
        optimizer = build_optimizer(cfg, strategy.algorithm)
        assert optimizer is not None
        updater = Updater(strategy.algorithm, optimizer, lambda step: 1.0, Clip())
        losses = []
        for step in range(steps):
            losses.append(strategy.execute(strategy.draw(step))[0])
            updater.update(step, losses[-1])
        return losses

    return train


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=["float32", "float64"]
)
def test_gradients_losses_and_metrics_of_a_meta_batch_are_those_of_one_process(
    ranks: int,
    dtype: torch.dtype,
    tolerance: float,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (
        ["algo=protonet", "model.norm_statistics=running"]
        if ranks == 3
        else ["algo=maml", "algo.adaptation_steps=2"]
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        _, algorithm, source, settings = built(place, *words)
        expected = alone(copy.deepcopy(algorithm), source, settings, one_step)
        found = together(ranks, with_others(algorithm, source, settings, one_step), tmp_path)
    finally:
        torch.set_default_dtype(default)
    assert found["losses"].shape == (5,)
    assert found["losses"].dtype == dtype
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=tolerance, atol=0)
    torch.testing.assert_close(found["metrics"], expected["metrics"], rtol=10 * tolerance, atol=tolerance)
    assert found["grads"].keys() == expected["grads"].keys()
    worst = {name: gap(grad, expected["grads"][name]) for name, grad in found["grads"].items()}
    assert max(worst.values()) < tolerance, worst


@pytest.mark.parametrize("data", ["glyphs", "sinusoid"])
def test_losses_of_twenty_steps_stay_with_those_of_one_process(
    data: str, place: Path, tmp_path: Path
) -> None:
    if data == "sinusoid":
        parts = assembled(
            compose(
                [
                    "device=cpu",
                    "data=sinusoid",
                    "algo.inner_lr=0.01",
                    "optimizer.lr=0.01",
                    "trainer.meta_batch_size=5",
                ]
            )
        )
    else:
        parts = built(place, "algo=maml")
    cfg, algorithm, source, settings = parts
    train = training(cfg, 20)
    expected = torch.stack(alone(copy.deepcopy(algorithm), source, settings, train))
    found = torch.stack(together(2, with_others(algorithm, source, settings, train), tmp_path))
    assert found.shape == (20, 5)
    assert float((found - expected).abs().max()) < 1e-4


def test_losses_are_the_same_bits_where_chunks_are_the_same(place: Path, tmp_path: Path) -> None:
    """Even where a large inner_lr magnifies every rounding: ranks take the chunks of one process, and the
    order of sums is no matter.
    """
    cfg, algorithm, source, settings = built(
        place, "algo=maml", "algo.inner_lr=0.4", "algo.adaptation_steps=3", "trainer.meta_batch_size=8"
    )
    train = training(cfg, 8)
    expected = torch.stack(alone(copy.deepcopy(algorithm), source, settings, train))
    found = torch.stack(together(2, with_others(algorithm, source, settings, train), tmp_path))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("unit", "chunk"), [(2, None), (2, 5), (5, 3), (50, None)]
)  # many for each rank; pairs; one idle; one for all
def test_evaluation_is_that_of_one_process_bit_for_bit(
    unit: int, chunk: int | None, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "UNITS", (unit, 1))
    _, algorithm, source, settings = built(place, "algo=maml", "algo.eval_adaptation_steps=2")

    def evaluated(strategy: SingleProcess, chunk: int | None = chunk) -> list[dict[str, list[float]]]:
        once = [
            strategy.evaluate(eval_spec("test", seed=2**63 - 1, episodes=9, chunk=chunk)),
            strategy.evaluate(eval_spec("val", seed=7, episodes=4, chunk=chunk, curve=False)),
        ]
        return [result.columns for result in once]

    expected = alone(copy.deepcopy(algorithm), source, settings, lambda strategy: evaluated(strategy, None))
    found = together(3, with_others(algorithm, source, settings, evaluated), tmp_path)
    assert [list(columns) for columns in found] == [list(columns) for columns in expected]
    assert repr(found) == repr(expected)  # of floats it tells every bit, the sign of zero too
    assert "accuracy_step_1" in found[0]
    assert "accuracy_step_1" not in found[1]


def test_predictions_are_those_of_one_process_bit_for_bit(place: Path, tmp_path: Path) -> None:
    _, algorithm, source, settings = built(place, "algo=maml", "algo.eval_adaptation_steps=2")

    def rows(strategy: SingleProcess) -> dict[str, Tensor]:
        return strategy.evaluate(eval_spec("val", seed=7, episodes=4, predictions=True)).rows

    expected = alone(copy.deepcopy(algorithm), source, settings, rows)
    found = together(2, with_others(algorithm, source, settings, rows), tmp_path)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    assert all(found[name].dtype == values.dtype for name, values in expected.items())


def test_scores_keep_the_sign_of_zero_and_what_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "UNITS", (2, 1))

    class Odd(ToyAlgorithm):
        def predict(self, adapted: Any, x: Any, mask: Tensor) -> Tensor:
            return x

    class OddObjective:
        primary, higher_is_better = "score", True

        def loss(self, prediction: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            return -0.0 * y.abs().sum()

        def metrics(self, prediction: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
            return {"score": torch.where(y.sum() > 6, y.sum() / 0.0, -0.0)}

    class OddSource(ToySource):
        def spec(self, split: Any) -> Any:
            return replace(super().spec(split), objective=OddObjective())

    def evaluated(strategy: SingleProcess) -> dict[str, list[float]]:
        return strategy.evaluate(eval_spec("val", seed=0, episodes=8)).columns

    source = OddSource()
    expected = alone(Odd(), source, SETTINGS, evaluated)
    assert {"-0.0", "inf"} <= set(map(repr, expected["score"]))
    assert repr(together(2, with_others(Odd(), source, SETTINGS, evaluated), tmp_path)) == repr(expected)


def test_pooled_metrics_are_those_of_one_process_bit_for_bit(tmp_path: Path) -> None:
    source = PoolingSource()

    def evaluated(strategy: SingleProcess) -> dict[str, dict[str, float]]:
        return strategy.evaluate(eval_spec("val", seed=0, episodes=7, chunk=2)).summary

    expected = alone(ToyAlgorithm(), source, SETTINGS, evaluated)
    assert expected["share"]["ci95"] > 0
    assert repr(together(2, with_others(ToyAlgorithm(), source, SETTINGS, evaluated), tmp_path)) == repr(
        expected
    )


def test_an_evaluation_ends_at_the_same_task_whoever_shares_it(tmp_path: Path) -> None:
    def evaluated(strategy: SingleProcess) -> dict[str, list[float]]:
        spec = eval_spec("val", seed=0, episodes=900, chunk=70, ci_target=0.12)
        return strategy.evaluate(spec).columns

    source = ToySource()
    expected = alone(ToyAlgorithm(), source, SETTINGS, evaluated)
    assert len(expected["task_id"]) in range(300, 900, 100)
    assert together(2, with_others(ToyAlgorithm(), source, SETTINGS, evaluated), tmp_path) == expected


def test_every_kind_of_tensor_arrives_as_it_is(tmp_path: Path) -> None:
    def module(offset: int) -> Algorithm:
        algorithm = ToyAlgorithm()
        with torch.no_grad():
            algorithm.prior.fill_(0.1 + offset)
        algorithm.register_buffer("flags", torch.tensor([True, False, offset == 0]))
        algorithm.register_buffer("count", torch.tensor(2**62 + offset))
        algorithm.register_buffer("precise", torch.tensor([[1 / 3 + offset]], dtype=torch.float64))
        algorithm.register_buffer("none", torch.zeros(0, 4))
        algorithm.frozen = nn.Parameter(torch.full((3,), float(offset)), requires_grad=False)
        return algorithm

    def part(link: Link) -> dict[str, Tensor] | None:
        algorithm = module(link.rank)
        link.spread(algorithm)
        right = all(
            torch.equal(value, module(0).state_dict()[name]) for name, value in algorithm.state_dict().items()
        )
        count = torch.tensor([int(right)])
        link.sum(count)
        return {"right": count}

    assert together(3, part, tmp_path)["right"].item() == 3


def test_lost_rank_is_noticed_between_the_batches_of_an_evaluation() -> None:
    class Silent:
        rank, ranks = 0, 2

        def order(self, *numbers: int) -> None:
            assert numbers[0] == EVALUATE

        def say(self, text: str, size: int) -> None:
            assert len(text) == size

        def spread(self, algorithm: Algorithm) -> None:
            pass

    def missing() -> None:
        raise RankError("rank 1 is gone")

    source = ToySource()
    strategy = MultiProcess(
        ToyAlgorithm(), source, Executor(ToyAlgorithm(), TaskPlan()), SETTINGS, Silent(), missing
    )  # type: ignore[arg-type]
    with pytest.raises(RankError, match="rank 1 is gone"):
        strategy.evaluate(eval_spec("val", seed=0, episodes=100))
    assert source.asked[-1] == ("val", 0, 0, 50), "the first of two batches"


def test_flat_minibatch_is_not_split_and_no_order_is_given() -> None:
    class Flat(ToyAlgorithm):
        trains_on = "examples"

    class Mute:
        rank, ranks = 0, 2

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"link.{name} was used")

    source = ToySource()
    strategy = MultiProcess(Flat(), source, Executor(Flat(), TaskPlan()), SETTINGS, Mute(), lambda: None)  # type: ignore[arg-type]
    assert len(strategy.draw(2).y) == SETTINGS.batch_size  # type: ignore[union-attr]
    assert source.asked == [("examples", 3, 10, 5)]


@pytest.mark.parametrize(("ranks", "count"), [(1, 4), (2, 5), (3, 5), (4, 4), (7, 25)])
def test_shares_are_neighbours_that_cover_every_place_once(ranks: int, count: int) -> None:
    shares = [share_of(rank, ranks, count) for rank in range(ranks)]
    assert [place for share in shares for place in share] == list(range(count))
    sizes = {len(share) for share in shares}
    assert min(sizes) >= 1
    assert max(sizes) == replace(SETTINGS, meta_batch_size=count).part(ranks).meta_batch_size
    assert max(sizes) - min(sizes) <= 1
