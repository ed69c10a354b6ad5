"""Which plan a run takes: the one that was named, or the fastest of those measured here or remembered from an equal run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from metalearn import build
from metalearn.core import Algorithm, Source
from metalearn.data.cache import cache_folder
from metalearn.engine.environment import hardware
from metalearn.engine.execution import TaskPlan
from metalearn.engine.settings import Settings, draw_batch
from metalearn.engine.tuning import Measured, tune, unmeasured

log = logging.getLogger(__name__)


def chosen_plan(cfg: dict[str, Any], algorithm: Algorithm, source: Source, settings: Settings, device: torch.device) -> TaskPlan:
    """The plan to train with. Timings are kept in the cache folder, so that an equal run on this machine takes the same plan."""
    wish = build.plan_wish(cfg)
    if wish.compile:
        torch.compiler.reset()  # the compiler's limit on rebuilds is one for the process, and this may be a job of a sweep
    if algorithm.trains_on is None:
        return unmeasured(algorithm) if wish.name == "auto" else TaskPlan(wish.name, wish.chunk)
    if wish.settled:
        return wish.plan()
    path = cache_folder(cfg["data"].get("cache_dir")) / "plans" / f"{workload(cfg, source, device)}.json"
    found = remembered(path)
    if found is None:
        found = tune(algorithm, draw_batch(algorithm, source, settings, 0), wish, steps=settings.outer_steps)
        log.info(found.table(settings.outer_steps))
        try:
            remember(path, found)
        except OSError as error:
            log.warning(f"the timings could not be kept in {path.parent} ({error.strerror}); an equal run will measure again")
    else:
        log.info(f"{found.table(settings.outer_steps)}\n  (measured by an earlier run; delete {path} to measure again)")
    return found.best(settings.outer_steps).plan


def workload(cfg: dict[str, Any], source: Source, device: torch.device) -> str:
    """Sixteen hex digits of a sha256 over everything that the time of an outer step depends on."""
    spec = source.spec("train")
    facts = {
        "algo": {key: value for key, value in cfg["algo"].items() if key != "about"},
        "model": cfg["model"],
        "tasks": [spec.kind, repr(spec.input_spec), spec.support_size, spec.query_size, spec.num_outputs, spec.max_way, spec.ragged],
        "rows": [cfg["trainer"]["meta_batch_size"], cfg["trainer"]["batch_size"], cfg["trainer"]["outer_steps"]],
        "device": {key: value for key, value in cfg["device"].items() if key != "name"},
        "versions": [version("metalearn-runner"), torch.__version__, torch.version.cuda],
        "hardware": hardware(device),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def remembered(path: Path) -> Measured | None:
    """Earlier timings; None where there are none that can be read."""
    try:
        found = Measured.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.timings else None


def remember(path: Path, found: Measured) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    temporary.write_text(json.dumps(found.to_json(), indent=1), encoding="utf-8")
    os.replace(temporary, path)
