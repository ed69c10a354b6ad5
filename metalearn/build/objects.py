"""From a checked configuration to the objects of a run."""

from __future__ import annotations

import collections
import inspect
import logging
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.build.instantiate import BASES, Config, construct, resolve
from metalearn.config.loader import Library, packaged_options
from metalearn.core import SPLITS, Algorithm, Source, Split, TaskSpec
from metalearn.engine.autotune import Wish
from metalearn.engine.fitting import misfits, obstacles, plan_misfits, rank_misfits
from metalearn.engine.locked import judged_source
from metalearn.errors import ConfigError, MetalearnError, raise_if
from metalearn.loggers import Logger
from metalearn.loggers.guard import failure
from metalearn.rundir.messages import overhearing

log = logging.getLogger(__name__)

Specs = dict[Split, TaskSpec]
KEPT_BYTES = 2**28  # of parts, each kind for itself, that are kept beside the next one


@dataclass
class Part:
    """Something that was built, what was said meanwhile, and the bytes of its tensors."""

    thing: Any
    said: list[str]
    size: int


@dataclass
class Shelf:
    """Parts by what they were built from: the newest, however large, and others while they take little
    memory.

    lazy: they are larger once they are used.
    """

    lazy: bool = False
    parts: dict[str, Part] = field(default_factory=dict)

    def make(self, key: str, make: Callable[[], Any]) -> Any:
        self.parts.pop(key, None)
        if self.lazy:
            for part in self.parts.values():
                part.size = bytes_of(part.thing)
        while self.parts and sum(part.size for part in self.parts.values()) > KEPT_BYTES:
            del self.parts[max(self.parts, key=lambda key: self.parts[key].size)]
        with overhearing() as said:
            thing = make()
        self.parts[key] = Part(thing, said, bytes_of(thing))
        return thing

    def said(self, key: str) -> list[str]:
        return self.parts[key].said if key in self.parts else []

    def take(self, key: str) -> Any:
        """The thing, which is handed out once; None if it is not here."""
        part = self.parts.pop(key, None)
        return None if part is None else part.thing


def bytes_of(thing: Any) -> int:
    """Of the tensors and arrays that a part holds, each once, at any depth of attributes and containers."""
    sizes: dict[int, int] = {}
    seen: dict[int, Any] = {}
    left = [thing]
    while left:
        found = left.pop()
        if id(found) in seen or isinstance(found, type | types.ModuleType | types.FunctionType):
            continue
        seen[id(found)] = found
        if isinstance(found, Tensor):
            storage = found.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(found, np.ndarray):
            sizes[id(found)] = found.nbytes
        elif isinstance(found, Mapping):
            left += found.values()
        elif isinstance(found, list | tuple | set):
            left += found
        else:
            left += getattr(found, "__dict__", {}).values()
    return sum(sizes.values())


def specs_of(cfg: Config, source: Source, splits: Sequence[Split] = SPLITS) -> Specs:
    """What the tasks of these splits are like, those of the final evaluation as a file of tasks has them."""
    files = {cfg["eval"]["split"]: cfg["eval"]["tasks"]}
    return {split: judged_source(source, files.get(split), split).spec(split) for split in splits}


def build_source(cfg: Config, device: torch.device) -> Source:
    source: Source = construct(cfg, "data", device=device)
    return source


def build_algorithm(
    cfg: Config,
    source: Source,
    device: torch.device,
    *,
    splits: Sequence[Split] = SPLITS,
    trained: TaskSpec | None = None,
) -> Algorithm:
    """The algorithm with its initial weights, a function of cfg["seed"] alone, checked against the tasks of
    these splits.

    trained: what it is trained on, if not the source's own train split.
    """
    trained = source.spec("train") if trained is None else trained
    judged = {
        split: replace(spec, num_train_classes=trained.num_train_classes)
        for split, spec in specs_of(cfg, source, splits).items()
    }
    return placed(cfg, initial_algorithm(cfg, judged, trained), device)


def placed(cfg: Config, algorithm: Algorithm, device: torch.device) -> Algorithm:
    """The algorithm on its device, in the memory format that `device.channels_last` asks for."""
    algorithm = algorithm.to(device)
    # The weights alone: the images follow at the first convolution, and vmap knows no memory formats.
    return (
        algorithm.to(memory_format=torch.channels_last)
        if cfg["device"].get("channels_last", False)
        else algorithm
    )


def initial_algorithm(cfg: Config, specs: Specs, trained: TaskSpec) -> Algorithm:
    # first: a constructor may not survive tasks that its class does not take
    raise_if(declared_problems(cfg, specs))
    torch.manual_seed(cfg["seed"])
    # Built on the CPU even for CUDA: the same seed gives the same initial weights on both.
    model = construct(cfg, "model", input_spec=trained.input_spec)
    if cfg["device"]["precision"] == "bfloat16":
        if not hasattr(model, "lower"):
            raise ConfigError(
                "device.precision=bfloat16 needs a model derived from metalearn.models.Model, not "
                f"{type(model).__name__}"
            )
        model.lower(torch.bfloat16)
    # Whoever is judged may be ragged where the training tasks are not: masks count if any task needs them.
    ragged = trained.ragged or any(spec.ragged for spec in specs.values())
    algorithm: Algorithm = construct(cfg, "algo", model=model, spec=replace(trained, ragged=ragged))
    problems = dialled_problems(cfg, algorithm)
    for spec in specs.values():
        try:
            algorithm.check(spec)
        except ConfigError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(str(error))
    raise_if(problems)
    return algorithm


def declared_problems(cfg: Config, specs: Specs) -> list[str]:
    """What the class of the method declares against these tasks, or against device.plan."""
    cls, plan = (
        resolve("algo._target_", cfg["algo"]["_target_"], BASES["algo"], cfg["trusted"]),
        cfg["device"]["plan"],
    )
    if not plan_misfits("", cls, plan) and not any(obstacles(cls, spec) for spec in specs.values()):
        return []
    targets = packaged_targets()
    name = name_among(targets, cfg, cls)
    ours = {option: resolve("algo._target_", target, BASES["algo"], []) for option, target in targets.items()}
    return plan_misfits(name, cls, plan) + [
        problem for spec in specs.values() for problem in misfits(name, cls, spec, ours)
    ]


def dialled_problems(cfg: Config, algorithm: Algorithm) -> list[str]:
    """What the method, as its dials have made it, declares against device.plan and device.ranks."""
    device = cfg["device"]
    plan, ranks = device["plan"], device.get("ranks", 1)
    if not plan_misfits("", algorithm, plan) and not rank_misfits("", algorithm, ranks):
        return []
    name = f"{name_among(packaged_targets(), cfg, type(algorithm))} with these dials"
    return plan_misfits(name, algorithm, plan) + rank_misfits(name, algorithm, ranks)


def packaged_targets() -> dict[str, str]:
    """The class of every algorithm of ours, by the words that choose it."""
    library = Library()
    return {f"algo={option}": library.read("algo", option)["_target_"] for option in packaged_options("algo")}


def name_among(targets: Mapping[str, str], cfg: Config, cls: type[Algorithm]) -> str:
    """A method as the person knows it; one class may have several YAMLs."""
    same = [ours for ours, target in targets.items() if target == cfg["algo"]["_target_"]]
    chosen = f"algo={(cfg.get('choices') or {}).get('algo')}"
    return chosen if chosen in same else next(iter(same), cls.__name__)


def build_optimizer(cfg: Config, algorithm: Algorithm) -> torch.optim.Optimizer | None:
    """The outer optimizer over everything that is learned across tasks; None if there is nothing to train."""
    if algorithm.trains_on is None or not any(p.requires_grad for p in algorithm.parameters()):
        return None
    cls = resolve("optimizer._target_", cfg["optimizer"]["_target_"], BASES["optimizer"], cfg["trusted"])
    fused = {"fused": True} if "fused" in inspect.signature(cls).parameters else {}
    optimizer: torch.optim.Optimizer = construct(cfg, "optimizer", params=grouped(algorithm), **fused)
    return optimizer


def grouped(algorithm: Algorithm) -> list[dict[str, Any]]:
    """The algorithm's parameter groups; ConfigError, with the names, unless they hold every trainable
    parameter once.
    """
    groups = algorithm.parameter_groups()
    held = collections.Counter(id(p) for group in groups for p in group["params"])
    wrong = [name for name, p in algorithm.named_parameters() if held.pop(id(p), 0) != int(p.requires_grad)]
    if wrong or held:
        what = ", ".join(wrong) or "what is no parameter of it"
        raise ConfigError(
            f"{type(algorithm).__name__}.parameter_groups() must hold every trainable parameter in one "
            "group, once, and nothing else, "
            f"but not so {what}"
        )
    return groups


def build_schedule(cfg: Config) -> Callable[[int], float]:
    """Factor on the outer lr as a pure function of the number of completed outer steps: no state to save."""
    dials, total = cfg["optimizer"]["schedule"], max(cfg["trainer"]["outer_steps"], 1)
    name, final = dials["name"], dials["final"]
    if name == "cosine":
        return lambda step: final + (1 - final) * (1 + math.cos(math.pi * min(step / total, 1.0))) / 2
    if name == "linear":
        return lambda step: 1 + (final - 1) * min(step / total, 1.0)
    if name == "step":
        return lambda step: dials["gamma"] ** (step // dials["every"])
    if name == "constant":
        return lambda step: 1.0
    raise ConfigError(f"optimizer.schedule.name={name} is none of constant, cosine, linear, step")


def try_logger(cfg: Config) -> tuple[Logger, str | None]:
    """The logger and None, or one that does nothing and why. ConfigError where its class refuses
    (ValueError).
    """
    try:
        logger: Logger = construct(cfg, "logger")
    except (MetalearnError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - a server that is down, a package that is broken: the run goes on without it
        return Logger(), failure(cfg["logger"]["_target_"], "to start", error)
    return logger, None


def plan_wish(cfg: Config) -> Wish:
    """What `device.*` asks for. compile=null: whether to compile is part of what plan=auto chooses, and false
    elsewhere.
    """
    name, chunk, compiled = (cfg["device"][key] for key in ("plan", "chunk", "compile"))
    return Wish(name, chunk, ("auto" if name == "auto" else False) if compiled is None else compiled)
