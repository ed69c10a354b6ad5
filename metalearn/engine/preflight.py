"""A rehearsal before step 1: one train step, one save and load, one test task, all on copies.

What can fail late (a full disk, a metric that does not exist, too little memory) then fails in the first seconds,
and the person learns how long the run will take. Nothing of it stays: weights, optimizer, random state and files
are those from before.
"""

from __future__ import annotations

import copy
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from metalearn.core import Algorithm, Objective, Source, Split, TaskBatch
from metalearn.engine.checkpoint import CheckpointStore
from metalearn.engine.evaluate import draw_tasks, frozen, judge
from metalearn.engine.execution import TaskPlan, execute
from metalearn.engine.settings import Settings, draw_batch
from metalearn.engine.state import pack, restore
from metalearn.engine.update import Updater
from metalearn.errors import MetalearnError

TRIAL = ".preflight-"
WARM_UP_LIMIT = 5.0  # seconds; a first step that takes longer is not repeated to get a warmer timing


@dataclass(frozen=True)
class Forecast:
    """Seconds for an outer step, a save, a validation task and a test task (with its curve); peak memory in MiB."""

    step: float
    save: float
    val_task: float
    test_task: float
    memory: float

    def describe(self, settings: Settings, steps: int, test_episodes: int) -> str:
        validations = -(-steps // settings.eval_every)
        judging = self.val_task * validations * settings.val_episodes + self.test_task * test_episodes
        saving = self.save * (1 + -(-steps // settings.checkpoint_every))
        total = steps * self.step + judging + saving
        return (
            f"preflight passed: {steps} outer steps of {1000 * self.step:.0f} ms, {validations} validations, "
            f"{test_episodes} test tasks; about {readable(total)}, {self.memory:.0f} MiB"
        )


def rehearse(
    algorithm: Algorithm,
    make_updater: Callable[[Algorithm], Updater | None],
    source: Source,
    plan: TaskPlan,
    settings: Settings,
    split: Split,
    folder: Path,
) -> Forecast:
    """Run each kind of work once on a copy. folder: where the trial checkpoint is written and removed.

    Raises MetalearnError when a saved checkpoint does not come back equal.
    """
    for leftover in folder.glob(f"{TRIAL}*"):  # of a process that was killed here
        shutil.rmtree(leftover)
    random_state = torch.get_rng_state()
    actor = copy.deepcopy(algorithm)
    updater = make_updater(actor)
    step = _train_seconds(actor, updater, source, plan, settings) if updater is not None else 0.0
    save = _save_seconds(actor, updater, folder)
    batch = draw_tasks(actor, source, split, seed=settings.eval_seed, first=0, count=1)
    with frozen(actor):
        judge(actor, batch, source.spec(split).objective, plan, curve=False)  # the first call of its kind is slow
    val_task, test_task = (_judge_seconds(actor, batch, source.spec(split).objective, plan, curve=curve) for curve in (False, True))
    torch.set_rng_state(random_state)
    return Forecast(step, save, val_task, test_task, _peak_memory(batch.key.device))


def _train_seconds(actor: Algorithm, updater: Updater, source: Source, plan: TaskPlan, settings: Settings) -> float:
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        losses, metrics = execute(actor, draw_batch(actor, source, settings, 0), plan)
        updater.update(0, losses, metrics.pop("statistics", None))
        _settle(losses.device)
        seconds = time.perf_counter() - start
        if seconds > WARM_UP_LIMIT:
            break
    return seconds


def _judge_seconds(actor: Algorithm, batch: TaskBatch, objective: Objective, plan: TaskPlan, *, curve: bool) -> float:
    start = time.perf_counter()
    with frozen(actor):
        judge(actor, batch, objective, plan, curve=curve)
    _settle(batch.key.device)
    return time.perf_counter() - start


def _save_seconds(actor: Algorithm, updater: Updater | None, folder: Path) -> float:
    optimizer = updater.optimizer if updater is not None else None
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=TRIAL, dir=folder) as place:
        store = CheckpointStore(Path(place))
        tensors, values = pack(actor, optimizer)
        store.save(0, tensors, {"optimizer": values})
        checkpoint = store.newest()
        restore(actor, optimizer, checkpoint.tensors, checkpoint.facts["optimizer"])
        again, _ = pack(actor, optimizer)
    changed = [name for name, value in tensors.items() if value.cpu().numpy().tobytes() != again[name].cpu().numpy().tobytes()]
    if changed or len(tensors) != len(again):
        raise MetalearnError(
            f"a checkpoint does not come back as it was saved ({', '.join(changed[:3])}); this run could not be resumed exactly"
        )
    return time.perf_counter() - start


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS counts bytes, Linux KiB


def readable(seconds: float) -> str:
    """12 s, 3.4 min or 1.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
