"""What machine, data and method say against a run before it begins; what the check built is kept for the
run.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.build.device import build_device, prepare_host
from metalearn.build.instantiate import BASES, Config, resolve
from metalearn.build.objects import (
    SPLITS,
    Shelf,
    Specs,
    build_algorithm,
    build_optimizer,
    build_source,
    initial_algorithm,
    placed,
    specs_of,
    try_logger,
)
from metalearn.core import Algorithm, Source
from metalearn.data.audit import audit
from metalearn.data.findings import Audit
from metalearn.errors import ConfigError, DataError, MetalearnError, raise_all
from metalearn.loggers import Logger
from metalearn.rundir.messages import overhearing

log = logging.getLogger(__name__)


def audited(cfg: Config) -> Audit:
    """What is found in the data of this configuration. DataError where there are none."""
    prepare_host(cfg)
    return audit(build_source(cfg, torch.device("cpu")), cfg["data"])


@dataclass
class Prebuilt:
    """What was built for a check, so that the run which follows does not build it, and read its data, again.

    A source has no state and is shared by the jobs of a sweep that are of its data. Algorithm and logger are
    one run's own, handed out once, to the run that was checked.
    """

    specs: dict[str, Specs] = field(default_factory=dict)  # by what `_data_key` says of a configuration
    _sources: Shelf = field(default_factory=lambda: Shelf(lazy=True))
    # each with torch's random state after the initial weights
    _algorithms: Shelf = field(default_factory=Shelf)
    _loggers: Shelf = field(default_factory=Shelf)  # each with why it is none

    def __reduce__(self) -> tuple[type[Prebuilt], tuple[()]]:
        return Prebuilt, ()  # in another process

    def said(self, cfg: Config, device: torch.device) -> list[str]:
        """What was said while the parts were built that a run of this configuration will find here."""
        key = _run_key(cfg)
        return [
            *self._sources.said(_data_key(cfg, device)),
            *self._loggers.said(key),
            *self._algorithms.said(key),
        ]

    def source(self, cfg: Config, device: torch.device) -> Source:
        key = _data_key(cfg, device)
        found = self._sources.parts.get(key)
        source: Source = found.thing if found else self._sources.make(key, lambda: build_source(cfg, device))
        return source

    def specs_for(self, cfg: Config, device: torch.device) -> Specs:
        data = _data_key(cfg, device)
        key = json.dumps([data, cfg["eval"]["tasks"], cfg["eval"]["split"]])
        if key not in self.specs:
            source = self.source(cfg, device)
            with overhearing() as said:
                source.check(SPLITS)
                source.prepare()
            self._sources.said(data).extend(said)
            self.specs[key] = specs_of(cfg, source)
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
        """The logger of a run. ConfigError where its class refuses; whatever else it raises costs a warning
        and the logger.
        """
        logger: Logger
        logger, problem = self._loggers.take(_run_key(cfg)) or try_logger(cfg)
        if problem is not None:
            log.warning(problem)
        return logger


def _data_key(cfg: Config, device: torch.device) -> str:
    return json.dumps([cfg["data"], device.type, device.index or 0, cfg["device"]["precision"]])


def _run_key(cfg: Config) -> str:
    # by now a number, see `metalearn.distributed.launch.pinned`
    return json.dumps({**cfg, "device": {**cfg["device"], "ranks": None}})


def check_machine(cfg: Config, run_dir: Path, prebuilt: Prebuilt) -> None:
    """Everything that machine, classes, data and method say against a run, in one error.

    prebuilt: holds afterwards what was built. Raises ConfigError if any problem is one of configuration,
    otherwise DataError.
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


def folder_problems(run_dir: Path) -> list[str]:
    """What keeps a run from being written to this folder, which need not exist yet."""
    place = run_dir.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return [f"run_dir={run_dir} cannot be written: {place} is not a folder; choose another run_dir"]
    if not os.access(place, os.W_OK | os.X_OK):
        return [
            f"run_dir={run_dir} cannot be written: no permission to write in {place}; choose another run_dir"
        ]
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:  # permission is not enough in /proc, or on a disk that is full
        return [f"run_dir={run_dir} cannot be written: {place}: {error.strerror}; choose another run_dir"]
    return []
