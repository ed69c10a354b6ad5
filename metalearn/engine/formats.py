"""How the metrics of an evaluation are read, and which of them chooses the best checkpoint."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from metalearn.core import Algorithm, MetricFormat, Objective
from metalearn.errors import ConfigError

SUFFIX = re.compile(r"_(inductive|step_\d+)$")


def formats(objective: Objective, algorithm: Algorithm, names: Iterable[str]) -> dict[str, MetricFormat]:
    """The formats of those metrics whose format was declared; `<primary>_inductive` and the like have the
    primary's.
    """
    declared = {"loss": MetricFormat(), **getattr(objective, "formats", {}), **algorithm.formats}
    primary = objective.primary
    if primary in declared:
        declared[primary] = replace(declared[primary], higher_is_better=objective.higher_is_better)
    stems = {name: name if name in declared else SUFFIX.sub("", name) for name in names}
    return {name: declared[stem] for name, stem in stems.items() if stem in declared}


class Monitor(NamedTuple):
    """The metric of validation that chooses the best checkpoint and says when training has stopped
    improving.
    """

    name: str
    higher_is_better: bool

    @staticmethod
    def of(wanted: str | None, objective: Objective, algorithm: Algorithm) -> Monitor:
        """wanted: eval.monitor, None for the primary metric. ConfigError where nothing says which way is
        better.
        """
        name = wanted or objective.primary
        if SUFFIX.sub("", name) == objective.primary:
            return Monitor(name, objective.higher_is_better)
        known = formats(objective, algorithm, [name])
        if name not in known:
            owners = f"{type(objective).__name__} or {type(algorithm).__name__}"
            raise ConfigError(
                f"eval.monitor={name}: nothing says whether more of it is better; give it a MetricFormat in "
                f"`formats` of {owners}"
            )
        return Monitor(name, known[name].higher_is_better)


def require_measured(wanted: str | None, names: Iterable[str]) -> None:
    """ConfigError with the closest match if validation measures nothing of the name that eval.monitor
    gives.
    """
    names = list(names)
    if wanted is None or wanted in names:
        return
    meant = difflib.get_close_matches(wanted, names, n=1)
    question = f"; did you mean {meant[0]}?" if meant else ";"
    raise ConfigError(
        f"eval.monitor={wanted} is no metric of validation{question} metrics: {', '.join(names)}"
    )
