"""From a checked configuration to objects, and what only the machine or the data can say about it."""

from __future__ import annotations

import collections
import ctypes
import functools
import inspect
import json
import logging
import math
import os
import platform
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.core import Algorithm, Source, Split, TaskSpec
from metalearn.engine.fitting import misfits, obstacles, plan_misfits
from metalearn.engine.mirror import failure
from metalearn.engine.tuning import Wish
from metalearn.errors import ConfigError, DataError, MetalearnError, raise_all, raise_if
from metalearn.library import Library, packaged_options
from metalearn.loggers import Logger
from metalearn.messages import overhearing
from metalearn.targets import BASES, Config, construct, resolve

log = logging.getLogger(__name__)

Specs = dict[Split, TaskSpec]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
KEPT_BYTES = 2**28  # of parts, each kind for itself, that are kept beside the next one
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of glibc's malloc.h


@dataclass
class Part:
    """Something that was built, what was said meanwhile, and the bytes of its tensors."""

    thing: Any
    said: list[str]
    size: int


@dataclass
class Shelf:
    """Parts by what they were built from: the newest, however large, and others while they take little memory.

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


@dataclass
class Prebuilt:
    """What was built for a check, so that the run which follows does not build it, and read its data, again.

    A source has no state and is shared by the jobs of a sweep that are of its data. Algorithm and logger are one run's
    own, handed out once, to the run that was checked.
    """

    specs: dict[str, Specs] = field(default_factory=dict)  # by what `_data_key` says of a configuration
    _sources: Shelf = field(default_factory=lambda: Shelf(lazy=True))
    _algorithms: Shelf = field(default_factory=Shelf)  # each with torch's random state after the initial weights
    _loggers: Shelf = field(default_factory=Shelf)  # each with why it is none

    def __reduce__(self) -> tuple[type[Prebuilt], tuple[()]]:
        return Prebuilt, ()  # in another process

    def said(self, cfg: Config, device: torch.device) -> list[str]:
        """What was said while the parts were built that a run of this configuration will find here."""
        key = _run_key(cfg)
        return [*self._sources.said(_data_key(cfg, device)), *self._loggers.said(key), *self._algorithms.said(key)]

    def source(self, cfg: Config, device: torch.device) -> Source:
        key = _data_key(cfg, device)
        found = self._sources.parts.get(key)
        source: Source = found.thing if found else self._sources.make(key, lambda: build_source(cfg, device))
        return source

    def specs_for(self, cfg: Config, device: torch.device) -> Specs:
        key = _data_key(cfg, device)
        if key not in self.specs:
            source = self.source(cfg, device)
            with overhearing() as said:
                source.check(SPLITS)
                source.prepare()
            self._sources.said(key).extend(said)
            self.specs[key] = specs_of(source)
        return self.specs[key]

    def check_algorithm(self, cfg: Config, specs: Specs) -> Algorithm:
        def make() -> tuple[Algorithm, Tensor]:
            return initial_algorithm(cfg, specs, specs["train"]), torch.get_rng_state()

        algorithm: Algorithm = self._algorithms.make(_run_key(cfg), make)[0]
        return algorithm

    def algorithm(self, cfg: Config, source: Source, device: torch.device) -> Algorithm:
        found = self._algorithms.take(_run_key(cfg))
        if found is None:
            return build_algorithm(cfg, source, device)
        algorithm, random_state = found
        torch.set_rng_state(random_state)  # as if it had been built just now
        return placed(cfg, algorithm, device)

    def check_logger(self, cfg: Config) -> None:
        self._loggers.make(_run_key(cfg), lambda: try_logger(cfg))

    def logger(self, cfg: Config) -> Logger:
        """The logger of a run. ConfigError where its class refuses; whatever else it raises costs a warning and the logger."""
        logger: Logger
        logger, problem = self._loggers.take(_run_key(cfg)) or try_logger(cfg)
        if problem is not None:
            log.warning(problem)
        return logger


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


def _data_key(cfg: Config, device: torch.device) -> str:
    return json.dumps([cfg["data"], device.type, device.index or 0, cfg["device"]["precision"]])


def _run_key(cfg: Config) -> str:
    return json.dumps({**cfg, "device": {**cfg["device"], "ranks": None}})  # by now a number, see `metalearn.run.ranks.pinned`


def check_machine(cfg: Config, run_dir: Path, prebuilt: Prebuilt) -> None:
    """Everything that machine, classes, data and method say against a run, in one error.

    prebuilt: holds afterwards what was built. Raises ConfigError if any problem is one of configuration, otherwise DataError.
    """
    errors: list[MetalearnError] = []

    def attempt(check: Callable[[], Any]) -> Any:
        try:
            return check()
        except (ConfigError, DataError) as error:
            errors.append(error)
            return None

    prepare_host(cfg)
    device = attempt(lambda: build_device(cfg)) or torch.device("cpu")
    for problem in folder_problems(run_dir):
        errors.append(ConfigError(problem))
    for group, base in BASES.items():
        attempt(functools.partial(resolve, f"{group}._target_", cfg[group]["_target_"], base, cfg["trusted"]))
    specs = attempt(lambda: prebuilt.specs_for(cfg, device))
    attempt(lambda: prebuilt.check_logger(cfg))
    algorithm = attempt(lambda: prebuilt.check_algorithm(cfg, specs)) if specs else None
    if algorithm is not None:
        attempt(lambda: build_optimizer(cfg, algorithm))
    raise_all(errors)


def specs_of(source: Source, splits: Sequence[Split] = SPLITS) -> Specs:
    return {split: source.spec(split) for split in splits}


def folder_problems(run_dir: Path) -> list[str]:
    """What keeps a run from being written to this folder, which need not exist yet."""
    place = run_dir.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return [f"run_dir={run_dir} cannot be written: {place} is not a folder; choose another run_dir"]
    if not os.access(place, os.W_OK | os.X_OK):
        return [f"run_dir={run_dir} cannot be written: no permission to write in {place}; choose another run_dir"]
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:  # permission is not enough in /proc, or on a disk that is full
        return [f"run_dir={run_dir} cannot be written: {place}: {error.strerror}; choose another run_dir"]
    return []


def prepare_host(cfg: Config) -> None:
    """Allocator, thread count and default precision of this process, set in full so that jobs of a sweep do not inherit them."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        # Large temporaries through mmap are returned and faulted in again at every step, which costs vmap a factor of 3 to 5.
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    torch.set_num_threads(cfg["device"]["threads"] or (1 if cfg["device"].get("ranks", 1) != 1 else default_threads()))
    torch.set_default_dtype(torch.float64 if cfg["device"]["precision"] == "float64" else torch.float32)
    deterministic = cfg["device"].get("deterministic", False)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False  # it would choose by timing, and bits would differ from run to run
    if deterministic:  # cuBLAS reads it at its first use, and matrix products are refused without it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@functools.cache
def default_threads() -> int:
    return torch.get_num_threads()


default_threads()  # remembered before any run changes it


def build_device(cfg: Config, rank: int = 0) -> torch.device:
    """Where this rank of the run computes: on CUDA each has a GPU of its own."""
    name, ranks = cfg["device"]["name"], cfg["device"].get("ranks", 1)
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if have else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ConfigError(f"device.name={name} is none of auto, cpu, cuda, cuda:NUMBER")
    if kind == "cuda" and int(index or 0) >= have:
        found = f"{have} CUDA devices" if have else "no CUDA device"
        raise ConfigError(f"device={name}, but PyTorch finds {found} on this machine; use device=cpu or device=auto")
    if kind == "cpu" or ranks in (1, "auto"):
        return torch.device(name)
    if index:
        raise ConfigError(f"device.name={name} is one GPU, but device.ranks={ranks} want one each; use device=cuda or device.ranks=1")
    if ranks > have:
        raise ConfigError(f"device.ranks={ranks}, but PyTorch finds {have} GPUs and every rank needs its own; use device.ranks=auto")
    return torch.device(kind, rank)


def num_ranks(cfg: Config) -> int:
    """device.ranks as a number. auto: one for each GPU, or each core that this process may use, as long as each has a task."""
    ranks = cfg["device"]["ranks"]
    if ranks != "auto":
        return int(ranks)
    device = build_device(cfg)
    if device.index is not None:
        return 1
    have = torch.cuda.device_count() if device.type == "cuda" else num_cores()
    return min(have, cfg["trainer"]["meta_batch_size"])


def num_cores() -> int:
    """Cores that this process may use: those it is bound to, or the share that a container grants if that is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
    except (OSError, ValueError):  # no Linux, or no limit, which is written "max"
        return bound
    return max(1, min(bound, quota // period))


def build_source(cfg: Config, device: torch.device) -> Source:
    source: Source = construct(cfg, "data", device=device)
    return source


def build_algorithm(
    cfg: Config, source: Source, device: torch.device, *, splits: Sequence[Split] = SPLITS, trained: TaskSpec | None = None
) -> Algorithm:
    """The algorithm with its initial weights, a function of cfg["seed"] alone, checked against the tasks of these splits.

    trained: what it is trained on, if not the source's own train split.
    """
    trained = source.spec("train") if trained is None else trained
    judged = {split: replace(spec, num_train_classes=trained.num_train_classes) for split, spec in specs_of(source, splits).items()}
    return placed(cfg, initial_algorithm(cfg, judged, trained), device)


def placed(cfg: Config, algorithm: Algorithm, device: torch.device) -> Algorithm:
    """The algorithm on its device, in the memory format that `device.channels_last` asks for."""
    algorithm = algorithm.to(device)
    # The weights alone: the images follow at the first convolution, and vmap knows no memory formats.
    return algorithm.to(memory_format=torch.channels_last) if cfg["device"].get("channels_last", False) else algorithm


def initial_algorithm(cfg: Config, specs: Specs, trained: TaskSpec) -> Algorithm:
    raise_if(declared_problems(cfg, specs))  # first: a constructor may not survive tasks that its class does not take
    torch.manual_seed(cfg["seed"])
    # Built on the CPU even for CUDA: the same seed gives the same initial weights on both.
    model = construct(cfg, "model", input_spec=trained.input_spec)
    if cfg["device"]["precision"] == "bfloat16":
        if not hasattr(model, "lower"):
            raise ConfigError(f"device.precision=bfloat16 needs a model derived from metalearn.models.Model, not {type(model).__name__}")
        model.lower(torch.bfloat16)
    # Whoever is judged may be ragged where the training tasks are not: masks count if any task needs them.
    ragged = trained.ragged or any(spec.ragged for spec in specs.values())
    algorithm: Algorithm = construct(cfg, "algo", model=model, spec=replace(trained, ragged=ragged))
    problems = []
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
    cls, plan = resolve("algo._target_", cfg["algo"]["_target_"], BASES["algo"], cfg["trusted"]), cfg["device"]["plan"]
    if not plan_misfits("", cls, plan) and not any(obstacles(cls, spec) for spec in specs.values()):
        return []
    library = Library()
    targets = {f"algo={option}": library.read("algo", option)["_target_"] for option in packaged_options("algo")}
    name = next((ours for ours, target in targets.items() if target == cfg["algo"]["_target_"]), cls.__name__)
    ours = {option: resolve("algo._target_", target, BASES["algo"], []) for option, target in targets.items()}
    return plan_misfits(name, cls, plan) + [problem for spec in specs.values() for problem in misfits(name, cls, spec, ours)]


def build_optimizer(cfg: Config, algorithm: Algorithm) -> torch.optim.Optimizer | None:
    """The outer optimizer over everything that is learned across tasks; None if there is nothing to train."""
    if algorithm.trains_on is None or not any(p.requires_grad for p in algorithm.parameters()):
        return None
    cls = resolve("optimizer._target_", cfg["optimizer"]["_target_"], BASES["optimizer"], cfg["trusted"])
    fused = {"fused": True} if "fused" in inspect.signature(cls).parameters else {}
    optimizer: torch.optim.Optimizer = construct(cfg, "optimizer", params=grouped(algorithm), **fused)
    return optimizer


def grouped(algorithm: Algorithm) -> list[dict[str, Any]]:
    """The algorithm's parameter groups; ConfigError, with the names, unless they hold every trainable parameter once."""
    groups = algorithm.parameter_groups()
    held = collections.Counter(id(p) for group in groups for p in group["params"])
    wrong = [name for name, p in algorithm.named_parameters() if held.pop(id(p), 0) != int(p.requires_grad)]
    if wrong or held:
        what = ", ".join(wrong) or "what is no parameter of it"
        raise ConfigError(
            f"{type(algorithm).__name__}.parameter_groups() must hold every trainable parameter in one group, once, and nothing else, "
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
    """The logger and None, or one that does nothing and why. ConfigError where its class refuses (ValueError)."""
    try:
        logger: Logger = construct(cfg, "logger")
    except (MetalearnError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - a server that is down, a package that is broken: the run goes on without it
        return Logger(), failure(cfg["logger"]["_target_"], "to start", error)
    return logger, None


def plan_wish(cfg: Config) -> Wish:
    """What `device.*` asks for. compile=null: whether to compile is part of what plan=auto chooses, and false elsewhere."""
    name, chunk, compiled = (cfg["device"][key] for key in ("plan", "chunk", "compile"))
    return Wish(name, chunk, ("auto" if name == "auto" else False) if compiled is None else compiled)
