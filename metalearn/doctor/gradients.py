"""Gradients on tiny problems in float64: second order against finite differences, every plan against
`loop`.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.build.parts import Parts
from metalearn.config.compose import compose
from metalearn.config.loader import packaged_options
from metalearn.core import Algorithm, Batch, blank_query
from metalearn.doctor.checks import Check, FailedError, SkippedError
from metalearn.engine.evaluate import draw_tasks
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.loader import draw_batch
from metalearn.engine.plan_check import SLACK, relative, with_ordinary_norms
from metalearn.engine.settings import Settings

LOOP = TaskPlan("loop")
EXACT = [
    "device=cpu",
    "device.precision=float64",
    "device.threads=1",
    "trainer.meta_batch_size=3",
    "trainer.batch_size=8",
]
CURVES = [
    "algo=maml",
    "data=sinusoid",
    "data.shot=5",
    "data.query_shot=5",
    "model.init=xavier",
    "model.head_init=xavier",
]
IMAGES = [
    "data=glyphs",
    "data.num_classes=48",
    "data.num_drawings=6",
    "data.image_size=16",
    "data.way=3",
    "data.query_shot=2",
]
DIRECTIONS, STEP = 4, 1e-7  # a ReLU's kinks make larger steps lie
# relative: what finite differences are worth, and what leaving out second order at least costs
DIFFERENCES, FIRST_ORDER = (
    1e-5,
    1e-3,
)
ROUNDING = 1e-9  # relative: what two plans may differ by in float64
REPORT = "do not trust gradients of this installation; report it with the versions above"


@dataclass(frozen=True)
class Problem:
    """An algorithm with weights off their first values, and what it would learn from in its first step."""

    algorithm: Algorithm
    batch: Batch

    @staticmethod
    def of(*words: str) -> Problem:
        cfg = compose([*words, *EXACT])
        parts = Parts.build(cfg)
        batch: Batch
        if parts.algorithm.trains_on is None:
            batch = draw_tasks(parts.algorithm, parts.source, "train", seed=0, first=0, count=3)
        else:
            batch = draw_batch(parts.algorithm, parts.source, Settings.of(cfg), 0)
        return Problem(with_ordinary_norms(parts.algorithm), batch)


def second_order() -> str:
    """MAML's gradient through its inner steps is that of finite differences, and without second order it is
    not.
    """
    words = [*CURVES, "model.hidden=[8]", "algo.inner_lr=0.1", "algo.adaptation_steps=2"]
    full, first = (difference(Problem.of(*words, f"algo.order={order}")) for order in (2, 1))
    if not (full <= DIFFERENCES and first < math.inf):
        gaps = (
            f"algo.order=2 is {full:.1e} off finite differences (relative; at most {DIFFERENCES:.0e} is "
            f"rounding), algo.order=1 {first:.1e}"
        )
        raise FailedError(f"{gaps}; {REPORT}")
    if first < FIRST_ORDER:
        raise FailedError(
            f"algo.order=1 is {first:.1e} off finite differences, so that it takes second derivatives too; "
            f"{REPORT}"
        )
    return f"MAML with algo.order=2 is {full:.1e} off finite differences, with algo.order=1 {first:.1e}"


def difference(problem: Problem) -> float:
    """Gap between the gradient along random directions of all parameters and central differences, relative to
    these; inf if not finite.
    """
    algorithm, batch = problem.algorithm, problem.batch
    grads = Executor(algorithm, LOOP).sums(batch).grads
    start = {name: p.detach() for name, p in algorithm.named_parameters()}

    def loss_at(direction: dict[str, Tensor], scale: float) -> float:
        moved = {name: p + scale * direction[name] for name, p in start.items()}
        losses, _ = algorithm.call(moved, "losses", batch, LOOP)
        return float(losses.detach().sum())

    along, expected = [], []
    for seed in range(DIRECTIONS):
        generator = torch.Generator().manual_seed(seed)
        direction = {
            name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in start.items()
        }
        expected.append((loss_at(direction, STEP) - loss_at(direction, -STEP)) / (2 * STEP))
        along.append(sum(float((grads[name] * direction[name]).sum()) for name in grads))
    return relative(torch.tensor(along, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64))


def plans() -> list[Check]:
    """One check per algorithm, and one of the compiler."""
    return [(f"plans of {name}", partial(same_plans, name)) for name in packaged_options("algo")] + [
        ("compiled plan", compiled)
    ]


def same_plans(name: str) -> str:
    """loop and vmap, all tasks at once and in chunks, give the same losses and the same gradient of every
    parameter.
    """
    with tempfile.TemporaryDirectory(prefix="metalearn-") as folder:
        problem = Problem.of(f"algo={name}", *IMAGES, "model.channels=4", f"data.cache_dir={folder}")
    found = {str(plan): outcome(problem, plan) for plan in (LOOP, TaskPlan("vmap"), TaskPlan("vmap", 2))}
    return compare(found, "device.plan=loop")


def compiled() -> str:
    """A compiled plan gives the gradient of the loop."""
    if not has_compiler():
        raise SkippedError(
            "there is no C++ compiler, which device.compile needs; install one, such as g++, or leave "
            "device.compile as it is"
        )
    # every layer would take seconds to compile
    problem = Problem.of(*CURVES, "model.hidden=[]", "algo.inner_lr=0.1")
    torch.compiler.reset()
    plan = TaskPlan("vmap", compile=True)
    return compare(
        {str(LOOP): outcome(problem, LOOP), str(plan): outcome(problem, plan)}, "device.compile=false"
    )


def has_compiler() -> bool:
    """Whether the compiler that PyTorch would call is there: $CXX, else g++."""
    from torch._inductor import config as inductor

    names = inductor.cpp.cxx if isinstance(inductor.cpp.cxx, (tuple, list)) else (inductor.cpp.cxx,)
    return any(shutil.which(name) for name in names if name)


def outcome(problem: Problem, plan: TaskPlan) -> dict[str, Tensor]:
    """Losses and gradients by name; predictions of a method that learns nothing."""
    algorithm, batch = problem.algorithm, problem.batch
    if algorithm.trains_on is None:
        return {"predictions": plan.map(partial(predictions, algorithm), batch)}
    sums = Executor(algorithm, plan).sums(batch)
    return {"losses": sums.losses, **{f"gradient of {name}": grad for name, grad in sums.grads.items()}}


def predictions(algorithm: Algorithm, task: Any) -> Tensor:
    adapted = algorithm.adapt(blank_query(task), steps=algorithm.eval_adaptation_steps)
    return algorithm.predict(adapted, task.query.x, task.query.mask)


def compare(found: dict[str, dict[str, Tensor]], way_out: str) -> str:
    """Hold every plan's outcome against that of the first."""
    (_, expected), *others = found.items()
    largest = max(float(value.norm()) for value in expected.values())
    slack = SLACK * torch.finfo(torch.float64).eps * largest
    gaps = [
        (relative(values[name], expected[name], 1e-6 * largest, slack), name, plan)
        for plan, values in others
        for name in expected
    ]
    gap, name, plan = max(gaps)
    if not gap <= ROUNDING:
        raise FailedError(
            f"{name} is {gap:.1e} off under {plan}, relative to loop (at most {ROUNDING:.0e} is rounding); "
            f"use {way_out}, and report it"
        )
    return f"{' = '.join(found)} but for {gap:.1e}"
