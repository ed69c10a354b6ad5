"""Everything that a configuration names, built; every rank of a run builds its own."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metalearn.build import specification
from metalearn.build.checks import Prebuilt
from metalearn.build.device import build_device, prepare_host
from metalearn.build.objects import build_algorithm, build_source, plan_wish
from metalearn.build.places import settled
from metalearn.core import SPLITS, Algorithm, Source, TaskSpec
from metalearn.engine.autotune import unmeasured
from metalearn.engine.executor import TaskPlan
from metalearn.engine.locked import judged_source
from metalearn.engine.membership import refuse_other_kind
from metalearn.errors import DataError
from metalearn.files import cache_folder

COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"  # PyTorch's own name for the folder


def keep_compiled() -> None:
    """Let PyTorch's compiler keep what it makes in this user's own cache folder, wherever a configuration has
    its data.

    What it finds there it unpickles. Its own choice is a folder in /tmp, which somebody else could make
    first.
    """
    folder = cache_folder(None) / "compiler"
    # RuntimeError: of a user without a home. Then the choice stays PyTorch's
    with contextlib.suppress(OSError, RuntimeError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.setdefault(COMPILER_CACHE, str(folder))


keep_compiled()  # before any optimizer is made, which loads the compiler, which makes the folder


@dataclass(frozen=True)
class Parts:
    """plan: `unmeasured` as long as a measurement is to choose it. trained: the run that is judged, else
    None.
    """

    source: Source
    algorithm: Algorithm
    plan: TaskPlan
    device: torch.device
    trained: dict[str, Any] | None = None

    @staticmethod
    def build(
        cfg: dict[str, Any],
        rank: int = 0,
        trained: dict[str, Any] | None = None,
        prebuilt: Prebuilt | None = None,
    ) -> Parts:
        """trained: for an evaluation, which asks of its data only the split that is judged: `data`, `trusted`
        and `run_dir` of the run.

        prebuilt: of a check in this process; what it lacks is built.
        """
        prepare_host(cfg)
        device = build_device(cfg, rank)
        made = Prebuilt() if prebuilt is None else prebuilt
        source = made.source(cfg, device)
        wish = plan_wish(cfg)
        splits = SPLITS if trained is None else (cfg["eval"]["split"],)
        spec = None if trained is None or trained["data"] != cfg["data"] else source.spec("train")
        if trained is not None:
            source = judged_source(source, cfg["eval"]["tasks"], cfg["eval"]["split"])
        if trained is not None and spec is None:
            spec = trained_spec(trained, source)
            refuse_other_kind(spec, source.spec(cfg["eval"]["split"]), source.name)
        source.check(splits)
        if trained is None:
            algorithm = made.algorithm(cfg, source, device)
        else:
            algorithm = build_algorithm(cfg, source, device, splits=splits, trained=spec)
        plan = wish.plan() if wish.settled else unmeasured(algorithm)
        return Parts(source, algorithm, plan, device, trained)


def trained_spec(trained: dict[str, Any], judged: Source | None = None) -> TaskSpec:
    """What the tasks are like that a run is trained on. judged: stands in for the data of an older run where
    that has moved.
    """
    kept = specification.read(Path(trained["run_dir"]), trained["trusted"])
    if kept is not None:
        return kept[0]
    try:
        return own_source(trained).spec("train")
    except DataError:
        if judged is None:
            raise
        return judged.spec("train")


def own_source(trained: dict[str, Any]) -> Source:
    """The data that a run is trained on, from where it lies now. DataError if it is gone."""
    return build_source(settled(trained, trained, Path(trained["run_dir"])), torch.device("cpu"))
