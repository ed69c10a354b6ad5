"""An author's own method, source or model: the contract of `metalearn.testing` on a composed configuration,
made small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from metalearn.build.device import build_device, prepare_host
from metalearn.build.instantiate import construct
from metalearn.build.objects import build_algorithm, build_source, plan_wish
from metalearn.config.compose import compose
from metalearn.core import SPLITS, Algorithm, Source
from metalearn.doctor.checks import Check, FailedError, SkippedError
from metalearn.errors import ConfigError
from metalearn.testing.algorithms import ALGORITHM_CHECKS, Trial
from metalearn.testing.checking import ContractError, NotApplicable, name_of, run
from metalearn.testing.models import MODEL_CHECKS, ModelTrial
from metalearn.testing.sources import SOURCE_CHECKS, SourceTrial

# What a key is lowered to where a choice has it, and no word names a key of its group: a check takes seconds,
# not minutes.
SMALL = {
    "data.num_classes": 120,
    "data.num_drawings": 8,
    "data.num_users": 200,
    "data.query_shot": 2,
    "model.channels": 8,
    "algo.adaptation_steps": 2,
    "algo.eval_adaptation_steps": 3,
}


class Choice:
    """What the words of a command line compose. Raises ConfigError or DataError for what a run would be
    refused for.
    """

    def __init__(self, words: list[str], config_dir: str | None) -> None:
        self.words = words
        device = [] if any(word.startswith("device=") for word in words) else ["device=cpu"]
        as_asked = compose([*words, *device, "device.threads=1"], config_dir)
        smaller = [f"{key}={value}" for key, value in SMALL.items() if self._lowers(as_asked, key, value)]
        try:
            self._build(compose([*words, *device, "device.threads=1", *smaller], config_dir))
        except ConfigError:  # as of data that cannot give so little, or of what is wrong with any size
            self._build(as_asked)

    def _lowers(self, cfg: dict[str, Any], key: str, value: int) -> bool:
        group, _, name = key.partition(".")
        present = cfg[group].get(name)
        return (
            isinstance(present, int)
            and present > value
            and not any(word.startswith(f"{group}.") for word in self.words)
        )

    def _build(self, cfg: dict[str, Any]) -> None:
        prepare_host(cfg)
        self.cfg, self.device = cfg, build_device(cfg)
        self.source: Source = build_source(cfg, self.device)
        self.source.check(SPLITS)
        self.algorithm: Algorithm = build_algorithm(cfg, self.source, self.device)

    def chosen(self, group: str) -> bool:
        return any(word.startswith(f"{group}=") for word in self.words)

    def checks(self) -> Iterator[Check]:
        """Of the source, model and method that the words chose, in this order, as each rests on those before;
        by default of the method.
        """
        told: set[str] = set()
        if self.chosen("data"):
            source = SourceTrial(self._make_source())
            yield from (
                (f"data, {name_of(check)}", partial(outcome, check, source, told)) for check in SOURCE_CHECKS
            )
        if self.chosen("model"):
            spec = self.source.spec("train").input_spec
            model = ModelTrial(construct(self.cfg, "model", input_spec=spec), spec)
            yield from (
                (f"model, {name_of(check)}", partial(outcome, check, model, told)) for check in MODEL_CHECKS
            )
        if (self.chosen("data") or self.chosen("model")) and not self.chosen("algo"):
            return
        plans = ("loop",) if self.cfg["device"]["plan"] == "loop" else ()
        trial = Trial(self.algorithm, self.source, plans, compiles=plan_wish(self.cfg).compile is not False)
        yield from (
            (f"algo, {name_of(check)}", partial(outcome, check, trial, told)) for check in ALGORITHM_CHECKS
        )

    def _make_source(self) -> Callable[..., Source]:
        def make(**dials: Any) -> Source:
            return build_source({**self.cfg, "data": {**self.cfg["data"], **dials}}, self.device)

        return make if "way" in self.cfg["data"] else lambda: make()


def outcome(check: Callable[[Any], str], trial: Any, told: set[str]) -> str:
    """A check of the contract as one of ours. told: what earlier ones failed with, which is said once."""
    try:
        return run(check, trial)
    except NotApplicable as reason:
        raise SkippedError(str(reason)) from reason
    except ContractError as error:
        sentence = str(error)
        if sentence in told:
            raise FailedError("for the same reason as above") from error
        told.add(sentence)
        raise FailedError(sentence) from error
