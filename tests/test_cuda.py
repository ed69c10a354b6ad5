"""The same tasks, losses and gradients on a GPU, without waiting inside a step; skipped by name where there
is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.build.objects import build_algorithm, build_source
from metalearn.config.compose import compose
from metalearn.core import Algorithm, Examples, Source, Task
from metalearn.engine.evaluate import evaluate
from metalearn.engine.executor import Executor, Sums, TaskPlan
from metalearn.engine.history import RunningMeans
from metalearn.engine.loader import draw_batch
from metalearn.engine.memory import free_bytes, peak_bytes
from metalearn.engine.strategy import SingleProcess
from metalearn.engine.update import Clip, Updater
from metalearn.run.resume import resume
from metalearn.run.train import train
from metalearn.rundir.checkpoints import CheckpointStore
from tests.engine.test_no_sync import outer_step
from tests.engine.test_trainer import SETTINGS
from tests.engine.toy import eval_spec
from tests.plugins import METHODS, class_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = torch.device("cuda")
CPU = torch.device("cpu")
TRAINED = [
    method
    for method in METHODS
    if class_of(method).trains_on is not None and "classification" in class_of(method).kinds
]


def built(algo: str, device: torch.device, cache: Path) -> tuple[Algorithm, Source]:
    words = ["data.way=3", "data.query_shot=2", "model.channels=8"]
    cfg = compose([f"algo={algo}", "device=cpu", f"data.cache_dir={cache}", *words])
    source = build_source(cfg, device)
    return build_algorithm(cfg, source, device), source


def batch_of(algorithm: Algorithm, source: Source, step: int = 1) -> Task | Examples:
    return draw_batch(algorithm, source, SETTINGS, step)


def on_both(algo: str, cache: Path) -> list[tuple[Any, Sums]]:
    """(batch, sums) as the CPU has them, and as the GPU has them."""
    found = []
    for device in (CPU, DEVICE):
        algorithm, source = built(algo, device, cache)
        batch = batch_of(algorithm, source)
        sums = Executor(algorithm, TaskPlan("vmap")).sums(batch)
        assert {leaf.device.type for leaf in tree_leaves((tuple(batch), tuple(sums)))} == {device.type}
        found.append(tree_map(lambda leaf: leaf.cpu(), (tuple(batch), sums)))
    return found


def assert_close(found: Sums, expected: Sums, tolerance: float) -> None:
    torch.testing.assert_close(found.losses, expected.losses, rtol=tolerance, atol=tolerance)
    largest = max(grad.norm() for grad in expected.grads.values())
    for name, grad in expected.grads.items():
        gap = (found.grads[name] - grad).norm()
        assert gap <= tolerance * (grad.norm() + 0.1 * largest), (
            f"{name}: {gap / grad.norm():.1e} of its size"
        )


@pytest.mark.parametrize("algo", TRAINED)
def test_tasks_losses_and_gradients_equal_those_of_the_cpu(algo: str, tmp_path: Path) -> None:
    (tasks, expected), (tasks_there, found) = on_both(algo, tmp_path)
    for here, there in zip(tree_leaves(tasks), tree_leaves(tasks_there), strict=True):
        assert torch.equal(here, there), "the sampler must give the same bits on every device"
    assert_close(found, expected, 1e-2)


@pytest.mark.parametrize("algo", TRAINED)
def test_gradients_equal_those_of_the_cpu_to_rounding_in_float64(algo: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        (_, expected), (_, found) = on_both(algo, tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(found, expected, 1e-7)


@pytest.mark.parametrize("plan", [TaskPlan("loop"), TaskPlan("vmap", 2)], ids=str)
@pytest.mark.parametrize("algo", TRAINED)
def test_plans_agree(algo: str, plan: TaskPlan, tmp_path: Path) -> None:
    algorithm, source = built(algo, DEVICE, tmp_path)
    batch = batch_of(algorithm, source)
    assert_close(
        Executor(algorithm, plan).sums(batch), Executor(algorithm, TaskPlan("vmap")).sums(batch), 1e-2
    )


@pytest.mark.parametrize("plan", [TaskPlan("vmap", compile=True), TaskPlan("vmap", 2, compile=True)], ids=str)
@pytest.mark.parametrize("algo", [m for m in TRAINED if class_of(m).trains_on == "tasks"])
def test_compiled_plans_agree_and_later_steps_leave_earlier_results_alone(
    algo: str, plan: TaskPlan, tmp_path: Path
) -> None:
    """The results of a CUDA graph lie in memory that its next run writes to."""
    torch.compiler.reset()
    algorithm, source = built(algo, DEVICE, tmp_path)
    executor = Executor(algorithm, plan)
    # the graph is recorded in the second run and replayed later
    batches = [batch_of(algorithm, source, step) for step in range(4)]
    found = [executor.sums(batch) for batch in batches]
    for batch, sums in zip(batches, found, strict=True):
        assert_close(sums, Executor(algorithm, TaskPlan("vmap")).sums(batch), 1e-2)


@pytest.mark.parametrize("plan", [TaskPlan("vmap"), TaskPlan("loop")], ids=str)
@pytest.mark.parametrize("algo", TRAINED)
def test_a_step_does_not_wait_for_the_device(algo: str, plan: TaskPlan, tmp_path: Path) -> None:
    algorithm, source = built(algo, DEVICE, tmp_path)
    updater = Updater(
        algorithm,
        torch.optim.Adam(algorithm.parameters(), lr=0.1, fused=True),
        lambda step: 1.0,
        Clip(norm=1.0),
    )
    strategy, running_means = (
        SingleProcess(algorithm, source, Executor(algorithm, plan), SETTINGS),
        RunningMeans(),
    )
    outer_step(strategy, updater, running_means, 0)  # the first one fills caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        outer_step(strategy, updater, running_means, 1)
        outer_step(strategy, updater, running_means, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert updater.bad_step.item() == -1


@pytest.mark.parametrize("algo", TRAINED)
def test_bfloat16_is_near_float32(algo: str, tmp_path: Path) -> None:
    algorithm, source = built(algo, DEVICE, tmp_path)
    batch = batch_of(algorithm, source)
    full = Executor(algorithm, TaskPlan("vmap")).sums(batch)
    algorithm.model.lower(torch.bfloat16)
    low = Executor(algorithm, TaskPlan("vmap")).sums(batch)
    torch.testing.assert_close(low.losses, full.losses, rtol=0.05, atol=0.05)
    assert {grad.dtype for grad in low.grads.values()} == {torch.float32}
    assert not torch.equal(low.losses, full.losses)


def test_evaluation_equals_that_of_the_cpu(tmp_path: Path) -> None:
    means = []
    for device in (CPU, DEVICE):
        algorithm, source = built("protonet", device, tmp_path)
        result = evaluate(
            algorithm, source, eval_spec("val", seed=0, episodes=20, chunk=10), plan=TaskPlan("vmap")
        )
        means.append(result.summary["loss"]["mean"])
    assert means[0] == pytest.approx(means[1], rel=1e-3)


def test_memory_is_measured_and_chunks_are_halved_when_it_runs_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert 2**22 <= peak_bytes(lambda: torch.zeros(2**20, device=DEVICE), DEVICE) < 2**23
    free = free_bytes(DEVICE)
    assert free is not None and 0 < free <= torch.cuda.get_device_properties(DEVICE).total_memory
    algorithm, source = built("maml", DEVICE, tmp_path)
    batch = batch_of(algorithm, source)
    expected = Executor(algorithm, TaskPlan("vmap")).sums(batch)
    usual = algorithm.gradient

    def hungry(params: Any, tasks: Any, how: Any) -> Any:
        torch.empty(2**50 if len(tasks.key) > 1 else 1, dtype=torch.uint8, device=DEVICE)
        return usual(params, tasks, how)

    algorithm.gradient = hungry  # type: ignore[method-assign]
    executor = Executor(algorithm, TaskPlan("vmap", 2))
    assert_close(executor.sums(batch), expected, 1e-2)
    assert len(caplog.messages) == 1 and executor.plan.chunk == 1


@pytest.fixture
def host() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("algo", [m for m in TRAINED if class_of(m).trains_on == "tasks"][:2])
def test_resumed_run_ends_in_the_bits_of_one_that_was_not_stopped(
    algo: str, host: None, tmp_path: Path
) -> None:
    words = [
        f"algo={algo}",
        f"device={DEVICE.type}",
        "device.deterministic=true",
        "data.way=3",
        "data.query_shot=2",
        "model.channels=8",
    ]
    words += [
        f"data.cache_dir={tmp_path}",
        "eval.episodes=4",
        "eval.val_episodes=4",
        "trainer.eval_every=2",
        "trainer.meta_batch_size=4",
    ]
    for name, steps in (("whole", 4), ("parts", 2)):
        assert train(compose([*words, f"trainer.outer_steps={steps}"]), [], tmp_path / name) == 0
    assert resume(tmp_path / "parts", ["trainer.outer_steps=4"]) == 0
    ends = [CheckpointStore(tmp_path / name).newest().tensors for name in ("whole", "parts")]
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        if not name.startswith("random."):
            assert torch.equal(value, ends[1][name]), name
