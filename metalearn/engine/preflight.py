"""A rehearsal before step 1: one train step, one save and load, a few validation tasks, all on copies.

What can fail late (a full disk, a metric that does not exist, too little memory) then fails in the first
seconds, and the person learns how long the run will take and how much memory. Nothing of it stays: weights,
optimizer, random state and files are those from before.
"""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.core import Algorithm, Batch, Source
from metalearn.engine.batching import Batching
from metalearn.engine.evaluate import EvalSpec, batching_of, draw_tasks, evaluate, frozen, score_of
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.formats import Monitor, require_measured
from metalearn.engine.loader import draw_batch
from metalearn.engine.memory import OVERHEAD, Demand, free_share, peak_bytes
from metalearn.engine.settings import Settings
from metalearn.engine.update import Updater
from metalearn.errors import MetalearnError
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.rundir.messages import unheard
from metalearn.rundir.state import pack, restore

log = logging.getLogger(__name__)

TRIAL = ".preflight-"
WARM_UP_LIMIT = 5.0  # seconds; a first step that takes longer is not repeated to get a warmer timing
EVALUATING = 1.0  # seconds; the same for a first unit of an evaluation


@dataclass(frozen=True)
class Forecast:
    """Seconds of an outer step, a save, a validation and the test (with its curve); memory of training and
    evaluation.
    """

    step: float
    save: float
    val: float
    test: float
    demands: list[Demand]

    def describe(self, settings: Settings, steps: int, test_episodes: int) -> str:
        validations = -(-steps // settings.eval_every)
        evaluating = self.val * validations + self.test
        saving = self.save * (1 + -(-steps // settings.checkpoint_every))
        total = steps * self.step + evaluating + saving
        return (
            f"preflight passed: {steps} outer steps of {1000 * self.step:.1f} ms, {validations} validations, "
            f"{test_episodes} test tasks; "
            f"about {readable(total)}; memory: "
            f"{', '.join(f'{demand.work} about {demand}' for demand in self.demands)}"
        )


def rehearse(
    algorithm: Algorithm,
    make_updater: Callable[[Algorithm], Updater | None],
    source: Source,
    plan: TaskPlan,
    settings: Settings,
    spec: EvalSpec,
    folder: Path,
    *,
    ranks: int = 1,
) -> Forecast:
    """Run each kind of work once on a copy. folder: where the trial checkpoint is written and removed.

    settings, plan: what each of so many ranks does; a plan that compiles is rehearsed as it is before
    compiling. spec: of the final evaluation, whose split is left alone: validation tasks stand in for its
    own. Says beforehand if training will not fit into memory; of evaluations the strategy says it.
    Raises MetalearnError when a saved checkpoint does not come back equal.
    """
    for leftover in folder.glob(f"{TRIAL}*"):  # of a process that was killed here
        shutil.rmtree(leftover)
    random_state = torch.get_rng_state()
    actor, plan = copy.deepcopy(algorithm), replace(plan, compile=False)
    updater = make_updater(actor)
    with unheard():  # the run says itself what it does when memory runs out
        validation = _available(spec.validation(), source)
        _require_monitor(actor, source, plan, spec)
        training = [training_demand(actor, source, plan, settings)] if updater is not None else []
        specs = [validation, replace(validation, curve=True)]
        sizes, evaluations = zip(*(batching_of(actor, source, some, plan) for some in specs), strict=True)
        demands = [*training, max(evaluations, key=lambda demand: demand.peak)]
        test_size, _ = batching_of(actor, source, replace(specs[1], episodes=spec.episodes), plan)
    _compare(training, actor.outer_step.device, ranks)
    with unheard():
        step = _train_seconds(actor, updater, source, plan, settings) if updater is not None else 0.0
        val_task, test_task = (
            _evaluation_seconds(actor, source, plan, some, size)
            for some, size in zip(specs, sizes, strict=True)
        )
    save = _save_seconds(actor, updater, folder)
    torch.set_rng_state(random_state)
    val = val_task * sizes[0].busiest(validation.episodes, ranks)
    found = Forecast(step, save, val, test_task * test_size.busiest(spec.episodes, ranks), demands)
    steps = settings.outer_steps if algorithm.trains_on is not None else 0
    log.info(found.describe(settings, steps, spec.episodes))
    return found


def _require_monitor(actor: Algorithm, source: Source, plan: TaskPlan, spec: EvalSpec) -> None:
    """Validate on two tasks: a metric that fails does so now. ConfigError if eval.monitor names none of
    them.
    """
    found = evaluate(actor, source, replace(spec.validation(), episodes=2, chunk=2), plan=plan)
    require_measured(spec.monitor, found.summary)
    Monitor.of(spec.monitor, source.spec("train").objective, actor)


def training_demand(actor: Algorithm, source: Source, plan: TaskPlan, settings: Settings) -> Demand:
    """An outer step holds its meta-batch, a chunk of tasks with its graph and, from the second chunk on, the
    sum of the gradients.
    """
    if actor.trains_on == "examples":
        few = -(-settings.batch_size // 8)
        rows = draw_batch(actor, source, replace(settings, batch_size=2 * few), 0)
        fixed, each = _line(Executor(actor, plan).sums, rows, few, 2 * few)
        return Demand(
            "training",
            settings.batch_size,
            "row",
            fixed,
            each + _bytes(rows) / (2 * few),
            "trainer.batch_size",
        )
    # From two on: sums over a single task are views, which take no memory.
    tasks = draw_batch(actor, source, replace(settings, meta_batch_size=3), 0)
    fixed, each = _line(Executor(actor, replace(plan, chunk=0)).sums, tasks, 2, 3)
    fixed += settings.meta_batch_size * _bytes(tasks) / 3
    chunk = plan.chunk_of(settings.meta_batch_size)
    if plan.name == "vmap" and chunk < settings.meta_batch_size:
        # the sum of the chunks in float64, and the one that is added to it
        fixed += 3 * _bytes(list(actor.parameters()))
    return Demand("training", chunk, "task", fixed, each, "device.chunk" if plan.name == "vmap" else None)


def _line(work: Callable[[Any], Any], batch: Batch, few: int, more: int) -> tuple[float, float]:
    """(fixed, each) of the bytes that work on n rows of the batch takes at its peak, from two such
    numbers.
    """

    def peak(count: int) -> int:
        some = tree_map(lambda leaf: leaf[:count], batch)
        return peak_bytes(lambda: work(some), tree_leaves(batch)[0].device)

    peak(few)  # the first call of its kind also fills caches
    low, high = peak(few), peak(more)
    each = (high - low) / (more - few)
    return low - few * each, each


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(tree))


def _compare(demands: list[Demand], device: torch.device, ranks: int) -> None:
    share = free_share(device, ranks)
    for demand in demands:
        complaint = demand.complaint(share, OVERHEAD[device.type])
        if complaint is not None:
            log.warning(complaint)


def _train_seconds(
    actor: Algorithm, updater: Updater, source: Source, plan: TaskPlan, settings: Settings
) -> float:
    executor, seconds = Executor(actor, plan), 0.0
    for _ in range(2):
        start = time.perf_counter()
        losses, metrics = executor.execute(draw_batch(actor, source, settings, 0))
        updater.update(0, losses, metrics.pop("statistics", None))
        _settle(losses.device)
        seconds = time.perf_counter() - start
        if seconds > WARM_UP_LIMIT:
            break
    return seconds


def _available(spec: EvalSpec, source: Source) -> EvalSpec:
    """As many tasks as it asks, or as there are."""
    available = source.num_tasks(spec.split)
    return spec if available is None else replace(spec, episodes=min(spec.episodes, max(available, 1)))


def _evaluation_seconds(
    actor: Algorithm, source: Source, plan: TaskPlan, spec: EvalSpec, size: Batching
) -> float:
    """Seconds per task of a unit of an evaluation: many at once cost less each."""
    score, seconds = score_of(actor, source, spec, plan), 0.0
    for _ in range(2):
        start = time.perf_counter()
        batch = draw_tasks(actor, source, spec.split, seed=spec.seed, first=0, count=size.unit)
        with frozen(actor):
            size.scores(score, batch)
        _settle(batch.key.device)
        seconds = time.perf_counter() - start
        if seconds > EVALUATING:
            break
    return seconds / size.unit


def _save_seconds(actor: Algorithm, updater: Updater | None, folder: Path) -> float:
    optimizer = updater.optimizer if updater is not None else None
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=TRIAL, dir=folder) as place:
        store = CheckpointStore(Path(place))
        tensors, values = pack(actor, optimizer)
        store.save(0, tensors, {"optimizer": values})
        checkpoint = store.newest()
        restore(actor, optimizer, checkpoint.tensors, checkpoint.metadata["optimizer"])
        again, _ = pack(actor, optimizer)
    changed = [
        name
        for name, value in tensors.items()
        if value.cpu().numpy().tobytes() != again[name].cpu().numpy().tobytes()
    ]
    if changed or len(tensors) != len(again):
        raise MetalearnError(
            f"a checkpoint does not come back as it was saved ({', '.join(changed[:3])}); this run could not "
            "be resumed exactly"
        )
    return time.perf_counter() - start


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def readable(seconds: float) -> str:
    """12 s, 3.4 min or 1.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
