"""Which plan a run takes: the one that was named, or the fastest of those measured here or remembered from an
equal run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import metalearn
from metalearn.build.objects import plan_wish
from metalearn.core import Algorithm, Source
from metalearn.distributed.compiling import compile_ahead
from metalearn.engine.autotune import Ahead, Attempt, Measured, tune, unmeasured
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.loader import draw_batch
from metalearn.engine.settings import Settings
from metalearn.errors import ConfigError
from metalearn.files import cache_folder, replace_shared
from metalearn.rundir.environment import hardware

log = logging.getLogger(__name__)


def chosen_plan(
    cfg: dict[str, Any],
    algorithm: Algorithm,
    source: Source,
    settings: Settings,
    device: torch.device,
    check: Callable[[], None],
) -> TaskPlan:
    """The plan to train with, compiled if it is to be. Timings are kept in the cache folder, so that an equal
    run on this machine takes the same plan. check: raises to stop.
    """
    wish = plan_wish(cfg)

    def ahead(plan: TaskPlan, limit: float | None) -> Attempt:
        # A plan that was named is not proved; others are, in full precision.
        proven = not wish.settled and cfg["device"]["precision"] == "bfloat16"
        return compile_ahead(
            cfg,
            plan,
            key=graph(cfg, plan, algorithm, source, device),
            limit=limit,
            proven=proven,
            check=check,
        )

    if wish.compile:
        # the compiler's limit on rebuilds is one for the process, and this may be a job of a sweep
        torch.compiler.reset()
    if algorithm.trains_on is None:
        return unmeasured(algorithm) if wish.name == "auto" else TaskPlan(wish.name, wish.chunk)
    if wish.settled:
        return compiled(wish.plan(), ahead)
    path = (
        cache_folder(cfg["data"].get("cache_dir"))
        / "plans"
        / f"{workload(cfg, algorithm, source, device)}.json"
    )
    found = remembered(path)
    if found is None:
        found = tune(
            algorithm,
            draw_batch(algorithm, source, settings, 0),
            wish,
            steps=settings.outer_steps,
            ahead=ahead,
        )
        log.info(found.table(settings.outer_steps))
        try:
            remember(path, found)
        except OSError as error:
            log.warning(
                f"the timings could not be kept in {path.parent} ({error.strerror}); an equal run will "
                "measure again"
            )
    else:
        log.info(
            f"{found.table(settings.outer_steps)}\n  (measured by an earlier run; delete {path} to measure "
            "again)"
        )
        return compiled(found.best(settings.outer_steps).plan, ahead)
    return found.best(settings.outer_steps).plan


def compiled(plan: TaskPlan, ahead: Ahead) -> TaskPlan:
    """A plan that was chosen before, now ready to be used."""
    if plan.compile:
        log.info(f"compiling {replace(plan, compile=False)} before the first step")
        attempt = ahead(plan, None)
        if attempt.refused:
            raise ConfigError(str(attempt.problem))
        if attempt.ended:
            raise ConfigError(f"{plan}: {attempt.problem}; go on without a compiler: device.compile=false")
        if attempt.problem is not None:
            log.warning(f"{plan}: {attempt.problem}; compiling it in this process")
    return plan


def graph(
    cfg: dict[str, Any], plan: TaskPlan, algorithm: Algorithm, source: Source, device: torch.device
) -> str:
    """Names what compiling this plan makes on this machine, however the plan came about and for however many
    steps.
    """
    pinned = {**cfg["device"], "plan": plan.name, "chunk": plan.chunk, "compile": plan.compile}
    return workload(
        {**cfg, "device": pinned, "trainer": {**cfg["trainer"], "outer_steps": 0}}, algorithm, source, device
    )


def workload(cfg: dict[str, Any], algorithm: Algorithm, source: Source, device: torch.device) -> str:
    """Sixteen hex digits of a sha256 over everything that the time of an outer step depends on."""
    spec = source.spec("train")
    facts = {
        "algo": {key: value for key, value in cfg["algo"].items() if key != "about"},
        "model": cfg["model"],
        "code": code_of(algorithm),
        "tasks": [
            spec.kind,
            repr(spec.input_spec),
            spec.support_size,
            spec.query_size,
            spec.num_outputs,
            spec.max_way,
            spec.ragged,
        ],
        "rows": [
            cfg["trainer"]["meta_batch_size"],
            cfg["trainer"]["batch_size"],
            cfg["trainer"]["outer_steps"],
        ],
        "device": {key: value for key, value in cfg["device"].items() if key != "name"},
        "versions": [version("metalearn-runner"), torch.__version__, torch.version.cuda],
        "hardware": hardware(device),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def code_of(algorithm: Algorithm) -> str:
    """sha256 over the files of the method, of its model and of what they derive from: changed, they have
    another gradient.
    """
    classes = {cls for module in algorithm.modules() for cls in type(module).__mro__}
    classes |= {Algorithm, Executor, type(algorithm.objective)}
    names = {cls.__module__ for cls in classes}
    modules = [sys.modules[name] for name in names if name.partition(".")[0] not in ("torch", "builtins")]
    files = {Path(file) for file in (getattr(module, "__file__", None) for module in modules) if file}
    package = Path(metalearn.__file__).parent
    files |= {package / "functional.py", *(package / "core").glob("*.py")}  # functions that they may call
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def remembered(path: Path) -> Measured | None:
    """Earlier timings; None where there are none that can be read."""
    try:
        found = Measured.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.timings else None


def remember(path: Path, found: Measured) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_shared(path, json.dumps(found.to_json(), indent=1))
