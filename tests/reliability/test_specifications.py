"""spec.json is only written where reading it gives back the objective that the run has."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metalearn.build.specification import describe, read, signed
from metalearn.core import InputSpec, Objective, TaskSpec
from metalearn.errors import CheckpointError
from metalearn.objectives import Regression


class Weighted(Regression):
    def __init__(self, weight: float) -> None:
        self.weight = weight


class Halved(Regression):
    """Its attribute is not what it was made of."""

    def __init__(self, weight: float) -> None:
        self.weight = weight / 2


class Slotted:
    __slots__ = ("weight",)
    primary, higher_is_better = "loss", False
    loss = metrics = Regression.loss

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight


class Hidden(Slotted):
    """Its attribute is no argument, so that nothing tells a new one of it."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()


class Fragile(Weighted):
    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        if weight > 1:
            raise RuntimeError("weight is more than 1")


def source_of(objective: Objective) -> Any:
    spec = TaskSpec("regression", objective, 1, InputSpec((1,)), support_size=3, query_size=4)
    return SimpleNamespace(spec=lambda split: spec, preprocessing=dict)


@pytest.mark.parametrize("objective", [Weighted(0.5), Slotted(0.5)])
def test_an_objective_comes_back_with_its_attributes(tmp_path: Path, objective: Any) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(describe(source_of(objective))))
    found: Any = read(tmp_path, [__name__])
    assert type(found[0].objective) is type(objective)
    assert found[0].objective.weight == 0.5


@pytest.mark.parametrize("kind", [Halved, Hidden])
def test_one_that_would_come_back_as_another_is_not_written(kind: Any) -> None:
    objective = kind(1.0) if kind is Halved else kind()
    if kind is Hidden:
        objective.weight = 3.0
    with pytest.raises(ValueError, match=f"objective: {__name__}.{kind.__name__} .*weight"):
        describe(source_of(objective))


def test_whatever_its_constructor_raises_ends_in_a_sentence(tmp_path: Path) -> None:
    content = describe(source_of(Fragile(0.5)))
    content["task"]["objective"]["weight"] = 2.0
    (tmp_path / "spec.json").write_text(json.dumps(signed(content)))
    sentence = (
        r"spec.json is not valid: task.objective: .*Fragile cannot be made of weight=2.0: "
        r"RuntimeError: weight is more than 1; restore"
    )
    with pytest.raises(CheckpointError, match=sentence):
        read(tmp_path, [__name__])
