"""Memory: what is counted, what is forecast, what does not grow, and what happens when there is too little of
it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metalearn.build.objects import build_algorithm, build_source
from metalearn.config.compose import compose
from metalearn.core import Algorithm, Metrics, Parameters, Plan, Source, TaskBatch
from metalearn.engine import evaluate as evaluation
from metalearn.engine import memory, preflight
from metalearn.engine.evaluate import EvalSpec, batching_of, draw_tasks, evaluate_batch, frozen
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.loader import draw_batch
from metalearn.engine.memory import Demand, free_bytes, peak_bytes
from metalearn.engine.preflight import rehearse, training_demand
from metalearn.engine.settings import Settings
from metalearn.engine.update import Clip, Updater
from metalearn.errors import MetalearnError
from metalearn.hashing import draw
from metalearn.run.signals import StopSignals
from metalearn.run.train import train
from tests.engine.test_trainer import SETTINGS, SPEC
from tests.engine.toy import ToyAlgorithm, ToySource, eval_spec
from tests.reliability import harness

CPU = torch.device("cpu")
KIB = 1024


def test_peak_counts_what_is_alive_at_once_and_nothing_that_was_there_before() -> None:
    old = torch.zeros(KIB)

    def work() -> None:
        first = torch.zeros(KIB)  # 4 KiB
        view, seen_before = first.view(2, -1)[0], old.view(2, -1).detach()
        second = torch.ones(2 * KIB)  # 12 KiB are alive
        del first, second
        third = torch.ones(KIB)  # 8 KiB: the view keeps the first
        del view, seen_before, third

    assert peak_bytes(work, CPU) == 12 * KIB


def test_peak_sees_the_tensors_of_all_tasks_that_are_mapped() -> None:
    x = torch.ones(16, KIB)
    assert peak_bytes(lambda: torch.vmap(lambda row: (row + 1.0).sum())(x), CPU) == 16 * (4 * KIB + 4)


IMAGES = [
    "data=glyphs",
    "data.num_classes=48",
    "data.num_drawings=6",
    "data.way=3",
    "data.query_shot=2",
    "model.channels=16",
]
WORKLOADS = {
    "maml": ["algo=maml", *IMAGES],
    "maml max-pool": ["algo=maml", *IMAGES, "model.downsample=pool"],
    "protonet": ["algo=protonet", *IMAGES],
    "reptile": ["algo=reptile", *IMAGES, "algo.eval_adaptation_steps=6"],
    "baseline": ["algo=baseline", *IMAGES, "algo.eval_adaptation_steps=3"],
    "sinusoid": ["algo=maml", "data=sinusoid"],
    "ratings": ["algo=maml", "data=synthetic_ratings"],
}
Build = Callable[..., tuple[Algorithm, Source]]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    cache = tmp_path_factory.mktemp("cache")

    def from_words(name: str, *more: str) -> tuple[Algorithm, Source]:
        words = [
            *WORKLOADS[name],
            *([f"data.cache_dir={cache}"] if IMAGES[0] in WORKLOADS[name] else []),
            *more,
        ]
        cfg = compose([*words, "device=cpu"])
        source = build_source(cfg, CPU)
        algorithm = build_algorithm(cfg, source, CPU)
        # what is made once is not part of a step
        draw_tasks(algorithm, source, "train", seed=0, first=0, count=1)
        return algorithm, source

    return from_words


def settings(meta_batch_size: int = 12) -> Settings:
    return replace(SETTINGS, meta_batch_size=meta_batch_size, batch_size=64)


def training_peak(algorithm: Algorithm, source: Source, plan: TaskPlan, meta_batch_size: int = 12) -> int:
    return peak_bytes(
        lambda: Executor(algorithm, plan).sums(draw_batch(algorithm, source, settings(meta_batch_size), 0)),
        CPU,
    )


def evaluation_peak(algorithm: Algorithm, source: Source) -> int:
    def evaluation() -> None:
        batch = draw_tasks(algorithm, source, "val", seed=0, first=0, count=12)
        with frozen(algorithm):
            spec = eval_spec("val", seed=0, episodes=12)
            evaluate_batch(algorithm, source.spec("val").objective, TaskPlan("vmap"), spec, batch)

    return peak_bytes(evaluation, CPU)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("plan", [TaskPlan("vmap"), TaskPlan("vmap", 6), TaskPlan("loop")], ids=str)
def test_forecast_of_training_is_the_real_peak(plan: TaskPlan, name: str, build: Build) -> None:
    algorithm, source = build(name)
    forecast = training_demand(algorithm, source, plan, settings()).peak
    assert forecast == pytest.approx(training_peak(algorithm, source, plan), rel=0.2)


@pytest.mark.parametrize("name", WORKLOADS)
def test_forecast_of_evaluation_is_the_real_peak(name: str, build: Build) -> None:
    algorithm, source = build(name)
    _, demand = batching_of(algorithm, source, eval_spec("val", 0, 12), TaskPlan("vmap"))
    assert demand.count == 12
    assert demand.peak == pytest.approx(evaluation_peak(algorithm, source), rel=0.2)


@pytest.mark.parametrize("name", ["maml", "maml max-pool", "protonet"])
def test_evaluation_takes_far_less_than_training(name: str, build: Build) -> None:
    algorithm, source = build(name)
    assert evaluation_peak(algorithm, source) < 0.6 * training_peak(algorithm, source, TaskPlan("vmap"))


@pytest.mark.parametrize("name", ["maml", "sinusoid", "reptile"])
def test_evaluation_records_no_graph_that_grows_with_the_steps_or_the_order(name: str, build: Build) -> None:
    algorithm, source = build(name)

    def peak(steps: int) -> int:
        algorithm.eval_adaptation_steps = steps
        return evaluation_peak(algorithm, source)

    few, many = peak(2), peak(5)
    assert many <= 1.05 * few
    if hasattr(algorithm, "order"):
        algorithm.order = 1
        assert peak(5) == many


@pytest.mark.parametrize("name", ["maml", "reptile", "sinusoid"])
def test_memory_of_loop_does_not_grow_with_the_meta_batch(name: str, build: Build) -> None:
    algorithm, source = build(name)
    few, many = (training_peak(algorithm, source, TaskPlan("loop"), size) for size in (4, 32))
    tasks = draw_tasks(algorithm, source, "train", seed=0, first=0, count=28)
    assert many - few <= 2 * sum(leaf.nbytes for leaf in tree_leaves(tasks)), (
        "only the batch itself may be larger"
    )
    assert training_peak(algorithm, source, TaskPlan("vmap"), 32) > 2 * many


LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max address space         14000                9000                 bytes
"""


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 99 kB\nMemFree: 10 kB\nMemAvailable:   20 kB\n"}, 20 * KIB),
        (
            {  # version 2: the limit of a parent counts, pages of files that can be dropped do not
                "proc/meminfo": "MemAvailable: 20 kB",
                "proc/self/cgroup": "0::/job/step",
                "sys/fs/cgroup/job/memory.max": "9000",
                "sys/fs/cgroup/job/memory.current": "5000",
                "sys/fs/cgroup/job/memory.stat": "anon 4000\ninactive_file 1000\n",
                "sys/fs/cgroup/job/step/memory.max": "max",
                "sys/fs/cgroup/job/step/memory.current": "5000",
            },
            5000,
        ),
        (
            {  # version 1, inside a container that sees its own group at the top
                "proc/meminfo": "MemAvailable: 20 kB",
                "proc/self/cgroup": "5:cpu,memory:/job\n4:devices:/job",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 500",
            },
            3500,
        ),
        (
            {  # `ulimit -v` counts addresses, `ulimit -d` what is written to; hard limits do not count yet
                "proc/meminfo": "MemAvailable: 20 kB",
                "proc/self/limits": f"{LIMITS}Max data size             11000                unlimited       "
                "     bytes     \n",
                "proc/self/status": "Name:\tpython3 -m x\nVmSize:\t       5 kB\nVmRSS:\t 4 kB\nVmData:\t     "
                "  3 kB\n",
            },
            11000 - 3 * KIB,
        ),
        ({"proc/self/limits": LIMITS, "proc/self/status": "VmSize: 15 kB"}, 0),
    ],
    ids=["unknown", "machine", "version 2", "version 1", "ulimit -d", "ulimit -v"],
)
def test_free_memory_is_the_lowest_limit(files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_bytes(CPU, tmp_path) == expected


def test_what_does_not_fit_is_said_with_the_largest_number_that_does() -> None:
    demand = Demand("training", 16, "task", fixed=100 * 2**20, each=200 * 2**20, dial="device.chunk")
    assert demand.complaint(free=7 * 2**30, overhead=2.0) is None
    assert demand.complaint(free=3 * 2**30, overhead=2.0) == (
        "training needs about 3.2 GiB for 16 tasks at once, which is 6.4 GiB of the machine, but 3.0 GiB are "
        "free; set device.chunk=7"
    )
    assert demand.complaint(free=2**20, overhead=2.0).endswith(
        "choose a smaller model, fewer rows or fewer adaptation steps"
    )
    one = replace(demand, count=1, dial=None)
    assert one.complaint(free=2**20, overhead=1.0).startswith(
        "training needs about 300 MiB for one task at a time"
    )


def test_preflight_names_memory_and_warns_before_it_takes_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Careful(ToyAlgorithm):
        def update_running(self, statistics: Any) -> None:
            assert caplog.messages or free == 2**40, "the warnings must come before the first whole step"

    def updater(actor: Algorithm) -> Updater:
        return Updater(
            actor, torch.optim.SGD(actor.parameters(), lr=0.1, fused=True), lambda step: 1.0, Clip()
        )

    for free, ranks, warnings in ((2**40, 1, 0), (2**40, 2**39, 1), (100, 1, 1)):
        caplog.clear()
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        args = (updater, ToySource(), TaskPlan("vmap", 3), settings(), replace(SPEC, chunk=12), tmp_path)
        found = rehearse(Careful(), *args, ranks=ranks)
        assert len(caplog.messages) == warnings, caplog.messages
    assert caplog.messages[0].startswith("training needs about 0.0 MiB for 3 tasks at once")
    # of which the strategy warns
    assert "evaluation about 0.0 MiB for 8 tasks at once" in found.describe(settings(), 6, 10)
    text = found.describe(settings(), 6, 10)
    assert re.search(
        r"6 outer steps of \d+\.\d ms, 3 validations, 10 test tasks; about \d+ s; memory: training about 0.0 "
        r"MiB for 3 tasks",
        text,
    )


@pytest.mark.parametrize(
    ("ranks", "test_episodes", "total"),
    [(1, 100, "2.1 min"), (2, 50, "74 s"), (2, 100, "74 s"), (2, 130, "2.1 min")],
)
def test_ranks_share_an_evaluation_by_whole_batches(
    ranks: int, test_episodes: int, total: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3 validations of 8 tasks, which are one batch, and a test of batches of 50, a second per task."""
    monkeypatch.setattr(preflight, "_evaluation_seconds", lambda *work: 1.0)
    monkeypatch.setattr(preflight, "_save_seconds", lambda *work: 0.0)
    spec = replace(SPEC, episodes=test_episodes, chunk=None)
    work = (ToyAlgorithm(), lambda actor: None, ToySource(), TaskPlan("vmap"), settings(), spec, tmp_path)
    found = rehearse(*work, ranks=ranks)
    assert f"{test_episodes} test tasks; about {total};" in found.describe(settings(), 6, test_episodes)


def test_time_of_an_evaluation_is_that_of_whole_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """One task alone takes as long as fifty at once, so that judging one would forecast fifty times too
    much.
    """
    clock = [0.0]

    def slow(
        actor: Algorithm, objective: Any, plan: Plan, spec: EvalSpec, batch: TaskBatch
    ) -> dict[str, Tensor]:
        clock[0] += 0.1 + 0.001 * len(batch.key)
        return {"loss": torch.zeros(len(batch.key))}

    monkeypatch.setattr(evaluation, "evaluate_batch", slow)
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: clock[0])
    spec, work = eval_spec("val", 0, 600), (ToyAlgorithm(), ToySource(), TaskPlan("vmap"))
    size, _ = batching_of(*work[:2], spec, work[2])
    assert preflight._evaluation_seconds(*work, spec, size) == pytest.approx(0.15 / 50)


class Hungry(ToyAlgorithm):
    """Runs out of memory when more than `limit` tasks are taken at once."""

    def __init__(self, limit: int, error: str) -> None:
        super().__init__()
        self.limit, self.asked = limit, []
        self.error = (torch.OutOfMemoryError if error == "cuda" else RuntimeError)(MESSAGES[error])

    def gradient(self, params: Parameters, tasks: Any, how: Plan) -> tuple[Parameters, Tensor, Metrics]:
        self.asked.append(len(tasks.key))
        if len(tasks.key) > self.limit:
            raise self.error
        return super().gradient(params, tasks, how)


MESSAGES = {
    "cuda": "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "cpu": "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4 bytes.",
    "other": "shapes do not fit",
}


@pytest.mark.parametrize("error", ["cuda", "cpu"])
def test_chunk_is_halved_when_memory_runs_out_and_the_meta_batch_stays(
    error: str, caplog: pytest.LogCaptureFixture
) -> None:
    batch = ToySource().tasks("train", seed=0, first=0, count=12)
    batch = batch._replace(draws=draw(batch.key, ToyAlgorithm().draws(ToySource().spec("train"))))
    expected = Executor(ToyAlgorithm(), TaskPlan("vmap")).sums(batch)
    algorithm = Hungry(limit=3, error=error)
    executor = Executor(algorithm, TaskPlan("vmap", 8))
    found = executor.sums(batch)
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, check_dtype=False)  # chunks are added up in float64
    assert [re.findall(r"with (\d+) tasks.*device.chunk=(\d+)", line) for line in caplog.messages] == [
        [("8", "4")],
        [("4", "2")],
    ]
    algorithm.asked.clear()
    executor.sums(batch)
    assert algorithm.asked == [2] * 6, "what did not fit is not tried again"


def test_real_allocator_that_refuses_is_understood(caplog: pytest.LogCaptureFixture) -> None:
    class Greedy(Hungry):
        def gradient(self, params: Parameters, tasks: Any, how: Plan) -> tuple[Parameters, Tensor, Metrics]:
            torch.empty(2**60 if len(tasks.key) > 4 else 1, dtype=torch.uint8)
            return super().gradient(params, tasks, how)

    batch = ToySource().tasks("train", seed=0, first=0, count=8)
    batch = batch._replace(draws=draw(batch.key, ToyAlgorithm().draws(ToySource().spec("train"))))
    Executor(Greedy(8, "cpu"), TaskPlan("vmap")).sums(batch)
    assert len(caplog.messages) == 1


def test_one_task_that_does_not_fit_and_other_errors_end_the_run() -> None:
    batch = ToySource().tasks("train", seed=0, first=0, count=4)
    batch = batch._replace(draws=draw(batch.key, ToyAlgorithm().draws(ToySource().spec("train"))))
    with pytest.raises(
        MetalearnError, match=r"out of memory with a single task: CUDA out of memory.*choose a smaller model"
    ):
        Executor(Hungry(0, "cuda"), TaskPlan("vmap")).sums(batch)
    algorithm = Hungry(0, "other")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Executor(algorithm, TaskPlan("vmap")).sums(batch)
    assert algorithm.asked == [4]


@pytest.mark.slow
def test_resident_memory_is_flat_over_two_thousand_outer_steps(tmp_path: Path) -> None:
    words = [
        "data=sinusoid",
        "model.hidden=[8,8]",
        "trainer.meta_batch_size=2",
        "trainer.outer_steps=2001",
        "trainer.log_every=50",
    ]
    cfg = compose(
        [
            "device=cpu",
            "device.threads=1",
            *words,
            "trainer.eval_every=250",
            "eval.val_episodes=10",
            "eval.episodes=10",
        ]
    )
    kilobytes: list[int] = []
    usual = StopSignals.check

    def check(self: StopSignals) -> None:
        usual(self)
        kilobytes.append(
            int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // KIB
        )

    def work() -> int:
        StopSignals.check = check  # type: ignore[method-assign]
        code = train(cfg, [], tmp_path / "run")
        (tmp_path / "kilobytes").write_text(f"{len(kilobytes)} {kilobytes[200]} {kilobytes[2000]}")
        return code

    assert harness.finish(work) == 0
    calls, early, late = map(int, (tmp_path / "kilobytes").read_text().split())
    assert calls > 2000
    assert late - early < 4096, f"{late - early} KiB more after 2,000 steps than after 200"
