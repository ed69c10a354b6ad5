"""Twenty steps of every algorithm give the losses that are stored, and its declarations are those that are:
the net under silent changes of numbers, and of what is tested at all.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest

from metalearn.algorithms.maml import MAML
from tests.golden import runs


@pytest.fixture(scope="module")
def entry() -> dict[str, Any]:
    """What is stored for this version of torch."""
    store = runs.stored()
    if runs.minor() not in store:
        pytest.skip(
            f"no golden losses for torch {runs.minor()}, only for {', '.join(store)}; store them with: "
            "scripts/update_golden"
        )
    return dict(store[runs.minor()])


@pytest.mark.parametrize("name", list(runs.cases()))
def test_losses_are_those_that_are_stored(name: str, entry: dict[str, Any], tmp_path: Path) -> None:
    assert name in entry["losses"], f"{name} has no golden losses yet; store them with: scripts/update_golden"
    exact = {fact: entry[fact] for fact in runs.SAME} == runs.machine()
    problem = runs.complaint(
        name, runs.losses(runs.cases()[name], tmp_path), entry["losses"][name], exact=exact
    )
    assert problem is None, problem


def test_nothing_is_stored_that_is_not_run(entry: dict[str, Any]) -> None:
    assert sorted(entry["losses"]) == sorted(runs.cases()), "run scripts/update_golden"


def test_a_new_algorithm_is_run_and_has_to_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any]
) -> None:
    shutil.copytree(runs.CONF, tmp_path / "conf")
    (tmp_path / "conf" / "algo" / "novel.yaml").touch()
    monkeypatch.setattr(runs, "CONF", tmp_path / "conf")
    assert "algo=novel" in runs.cases()["novel"]
    with pytest.raises(
        AssertionError, match="novel has no golden losses yet; store them with: scripts/update_golden"
    ):
        test_losses_are_those_that_are_stored("novel", entry, tmp_path)


def test_methods_declare_what_is_stored() -> None:
    """A method that takes less than before is a change to be seen; what it does take has its own tests."""
    assert runs.declarations() == runs.declarations_stored(), (
        "if a method was meant to declare this, run scripts/update_golden and say so in CHANGELOG.md"
    )


@pytest.mark.parametrize(("word", "value"), [("handles_ragged", False), ("kinds", ("rating",))])
def test_a_changed_declaration_is_noticed(word: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAML, word, value, raising=False)
    with pytest.raises(AssertionError, match="run scripts/update_golden"):
        test_methods_declare_what_is_stored()


def test_a_changed_inner_step_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any]
) -> None:
    """By one part in a hundred million of the rate."""
    update = MAML.update
    monkeypatch.setattr(
        MAML,
        "update",
        lambda self, w, grads, step: update(self, w, {n: g * (1 + 1e-8) for n, g in grads.items()}, step),
    )
    found = runs.losses(runs.cases()["maml, ratings"], tmp_path)
    problem = runs.complaint("maml, ratings", found, entry["losses"]["maml, ratings"], exact=False)
    assert problem is not None
    assert problem.startswith("maml, ratings, step ")


def test_a_difference_is_named_with_step_values_and_the_way_out() -> None:
    expected = [1.0, 2.0, 4.0]
    assert runs.complaint("maml", [1.0, 2.0 + 1e-9, 4.0], expected, exact=False) is None
    for exact in (False, True):
        problem = runs.complaint("maml", [1.0, 2.0, 4.00001], expected, exact=exact)
        assert problem is not None
        assert problem.startswith("maml, step 3: loss 4.00001, stored 4.0, relative difference 2.5e-06 (")
        assert problem.endswith(
            "; if numbers were meant to change, run scripts/update_golden and say so in CHANGELOG.md"
        )
    assert "every bit counts" in str(runs.complaint("maml", [1.0, 2.0 + 1e-15, 4.0], expected, exact=True))
    assert "step 1: loss nan" in str(runs.complaint("maml", [float("nan"), 2.0, 4.0], expected, exact=False))
    assert "2 losses, 3 are stored" in str(runs.complaint("maml", expected[:2], expected, exact=False))


def test_an_update_leaves_other_versions_of_torch_alone() -> None:
    store = {"2.9": {"torch": "2.9.0", "losses": {"maml": [1.0]}}, runs.minor(): {"losses": {"gone": [2.0]}}}
    before = copy.deepcopy(store)
    new = runs.updated(store, {"maml": [3.0]})
    assert store == before
    assert new["2.9"] == before["2.9"]
    assert new[runs.minor()] == {**runs.machine(), "losses": {"maml": [3.0]}}
    assert list(new) == ["2.9", runs.minor()]
