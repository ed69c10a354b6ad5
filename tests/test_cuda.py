"""The same tasks, losses and gradients on a GPU; skipped by name where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.build import build_algorithm, build_source
from metalearn.config import compose
from metalearn.core import Algorithm, Source, Task
from metalearn.engine.execution import TaskPlan, execute
from metalearn.engine.update import Clip, Updater
from metalearn.hashing import draw

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TRAINED = ["maml", "protonet", "reptile"]


def built(algo: str, device: str, cache: Path) -> tuple[Algorithm, Source]:
    cfg = compose([f"algo={algo}", "device=cpu", "data.way=3", "data.query_shot=2", "model.channels=8", f"data.cache_dir={cache}"])
    source = build_source(cfg, torch.device(device))
    return build_algorithm(cfg, source, torch.device(device)), source


def batch_of(algorithm: Algorithm, source: Source) -> Task:
    tasks = source.tasks("train", seed=0, first=5, count=4)
    return tasks._replace(draws=draw(tasks.key, algorithm.draws(source.spec("train"))))


@pytest.mark.parametrize("algo", TRAINED)
def test_tasks_losses_and_gradients_equal_those_of_the_cpu(algo: str, tmp_path: Path) -> None:
    outcome: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        algorithm, source = built(algo, device, tmp_path)
        tasks = batch_of(algorithm, source)
        losses, _ = execute(algorithm, tasks, TaskPlan("vmap"))
        assert losses.device.type == device
        grads = {name: p.grad for name, p in algorithm.named_parameters()}
        outcome[device] = tree_map(lambda leaf: leaf.cpu(), (tuple(tasks), losses, grads))
    for cpu, cuda in zip(tree_leaves(outcome["cpu"][0]), tree_leaves(outcome["cuda"][0]), strict=True):
        assert torch.equal(cpu, cuda), "the sampler must give the same bits on every device"
    torch.testing.assert_close(outcome["cpu"][1], outcome["cuda"][1], rtol=1e-3, atol=1e-3)
    for name, grad in outcome["cpu"][2].items():
        torch.testing.assert_close(grad, outcome["cuda"][2][name], rtol=1e-2, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("algo", TRAINED)
def test_a_step_does_not_wait_for_the_device(algo: str, tmp_path: Path) -> None:
    algorithm, source = built(algo, "cuda", tmp_path)
    updater = Updater(algorithm, torch.optim.SGD(algorithm.parameters(), lr=0.1, fused=True), lambda step: 1.0, Clip(norm=1.0))

    def step() -> None:
        losses, metrics = execute(algorithm, batch_of(algorithm, source), TaskPlan("vmap"))
        updater.update(0, losses, metrics.pop("statistics", None))

    step()  # the first one fills caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
