"""The contract that every method and every source keeps; new YAML files are taken in by themselves.

Each method meets tasks in memory of every kind that it declares, each source a cheap method; all methods on
all sources are `slow`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from metalearn.algorithms.maml import MAML
from metalearn.build.objects import build_source
from metalearn.config.compose import compose
from metalearn.core import Kind, Source, TaskSpec
from metalearn.testing.algorithms import (
    ALGORITHM_CHECKS,
    Trial,
    a_compiled_gradient_is_that_of_the_loop,
    check_algorithm,
)
from metalearn.testing.checking import Check, ContractError, NotApplicable, name_of, run
from metalearn.testing.sources import SOURCE_CHECKS, SourceTrial, check_source
from tests import plugins
from tests.in_memory import InMemory
from tests.plugins import CPU, METHODS, PAIRS, SOURCES

KINDS: tuple[Kind, ...] = get_args(Kind)
CHECKS = [check for check in ALGORITHM_CHECKS if check is not a_compiled_gradient_is_that_of_the_loop]
# What a check may be left out for: a declaration of the method or of its tasks.
DECLARATIONS = ("trains_on=", "order_matters=", "ragged=", "plans=", "kind=", "norm_statistics ")
SOURCE_DECLARATIONS = ("kind=", "input_spec has codes", "members=", "way is no dial", "its rows have no")


def hold(check: Check, trial: Any, declarations: tuple[str, ...] = DECLARATIONS) -> None:
    try:
        assert run(check, trial)
    except NotApplicable as reason:
        assert str(reason).startswith(declarations), f"{reason}: no declaration of the method or of its tasks"
        pytest.skip(str(reason))


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_method_keeps_it_on_every_kind_that_it_declares(pair: tuple[str, Kind], check: Check) -> None:
    hold(check, Trial(*plugins.in_memory(*pair)))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_keeps_it_when_it_is_compiled(method: str) -> None:
    hold(a_compiled_gradient_is_that_of_the_loop, Trial(*plugins.two_layers(method)))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_refuses_what_it_does_not_declare(method: str) -> None:
    declared = plugins.class_of(method)
    for kind in KINDS:
        if kind not in declared.kinds:
            assert isinstance(plugins.built(plugins.configuration(method, kind), method, InMemory(kind)), str)
    if "rating" in declared.kinds and not declared.handles_ragged:
        ragged = InMemory("rating", ragged=True)
        assert isinstance(plugins.built(plugins.configuration(method, "rating"), method, ragged), str)


@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=name_of)
@pytest.mark.parametrize("data", SOURCES)
def test_a_source_keeps_it(data: str, check: Check, folder: Path) -> None:
    if reason := plugins.missing(data):
        pytest.skip(reason)
    hold(check, source_trial(data, folder), SOURCE_DECLARATIONS)


@cache
def source_trial(data: str, folder: Path) -> SourceTrial:
    cfg = compose(plugins.data_words(data, folder))

    def make(**dials: Any) -> Source:
        return build_source({**cfg, "data": {**cfg["data"], **dials}}, CPU)

    return SourceTrial(make if "way" in cfg["data"] else lambda: make())


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@pytest.mark.parametrize("data", SOURCES)
def test_a_cheap_method_keeps_it_on_every_source(data: str, check: Check, folder: Path) -> None:
    if reason := plugins.missing(data):
        pytest.skip(reason)
    pair = plugins.on_source(plugins.cheap(plugins.source_of(data, folder)), data, folder)
    assert not isinstance(pair, str), pair
    hold(check, Trial(*pair))


@pytest.mark.slow
@pytest.mark.parametrize("data", SOURCES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_it_on_every_source(method: str, data: str, folder: Path) -> None:
    if reason := plugins.missing(data):
        pytest.skip(reason)
    pair = plugins.on_source(method, data, folder)
    if isinstance(pair, str):
        pytest.skip(pair)
    check_algorithm(*pair)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_the_tasks_in_memory_are_a_source_like_any_other(kind: Kind, ragged: bool) -> None:
    if ragged and kind != "rating":
        return
    check_source(lambda: InMemory(kind, ragged=ragged))


def test_what_our_methods_and_sources_declare_is_met_by_a_cheap_one() -> None:
    """What they declare decides what the contract leaves out: nothing may be left out everywhere."""
    assert {kind for _, kind in PAIRS} == set(KINDS)
    assert any(plugins.class_of(method).handles_ragged for method, kind in PAIRS if kind == "rating")
    assert {plugins.class_of(method).trains_on for method in METHODS} == {"tasks", "examples", None}


def test_a_refusal_that_no_declaration_promises_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: MAML, spec: TaskSpec) -> None:
        raise ValueError("not for curves")

    monkeypatch.setattr(MAML, "check", refuse)
    cfg = plugins.configuration("maml", "regression")
    with pytest.raises(
        ContractError,
        match="MAML refuses tasks of regression that it declares to take .*not for curves.*`kinds`",
    ):
        plugins.built(cfg, "maml", InMemory("regression"))
