"""The first steps of every recipe give the losses that it records, and methods declare what is stored: the
net under silent changes of numbers, and of what is tested at all.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metalearn.algorithms.maml import MAML
from metalearn.config.about import headline
from metalearn.config.loader import packaged_options
from metalearn.sweep import smoke
from metalearn.sweep.recipes import recipe
from metalearn.sweep.smoke import complaint
from tests.golden import runs

RECIPES = packaged_options("experiment")
of = functools.cache(recipe)


@pytest.fixture(scope="module", autouse=True)
def caches(folder: Path) -> Iterator[None]:
    """Drawn characters and prepared Omniglot lie below the session's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "smoke"))
        yield


@pytest.mark.parametrize("name", RECIPES)
def test_first_steps_give_the_losses_that_are_recorded(name: str) -> None:
    one = of(name)
    missing = one.why_passed_over(smoke.TIER)
    if missing:
        pytest.skip(f"{name}: {missing}")
    found = smoke.smoke(name, one.about)
    assert found.verdict == "PASS", "\n".join(found.lines())


def test_every_method_is_in_the_first_steps_of_a_recipe_that_needs_no_data() -> None:
    cfgs = [of(name).cfg for name in RECIPES]
    reached = {cfg["choices"]["algo"] for cfg in cfgs if "root" not in cfg["data"]}
    assert reached == set(packaged_options("algo")), (
        "a new method needs a recipe that draws its own tasks, as conf/experiment/glyphs_maml.yaml; record "
        "it with: metalearn reproduce NAME --tier smoke --record"
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_marks_one_headline(name: str) -> None:
    about = of(name).about
    assert [figure["name"] for figure in about["figures"] if figure.get("headline")] == [
        (headline(about) or {}).get("name")
    ]


def test_lists_show_the_error_after_adaptation() -> None:
    assert (headline(of("ratings_maml").about) or {})["name"] == "adapted"


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


def test_a_changed_inner_step_is_noticed_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one part in a thousand of the rate."""
    update = MAML.update
    monkeypatch.setattr(
        MAML,
        "update",
        lambda self, w, grads, step: update(self, w, {n: g * (1 + 1e-3) for n, g in grads.items()}, step),
    )
    one = of("ratings_maml")
    record: dict[str, Any] = one.about["measured"]["smoke"]
    elsewhere = {**one.about, "measured": {"smoke": {**record, "cpu": "another"}}}
    found = smoke.smoke(one.name, elsewhere)
    assert not found.exact
    assert found.verdict == "FAIL"
    assert found.lines()[0].startswith("ratings_maml: FAIL, as it stands, step ")


def test_a_difference_is_named_with_step_values_and_the_way_out() -> None:
    expected = [1.0, 2.0, 4.0]
    assert complaint("mine", [1.0, 2.0 + 1e-6, 4.0], expected, exact=False) is None
    for exact in (False, True):
        problem = complaint("mine", [1.0, 2.0, 4.00001], expected, exact=exact)
        assert problem is not None
        assert problem.startswith("step 3: loss 4.00001, recorded 4.0, relative difference 2.5e-06 (")
        assert problem.endswith("metalearn reproduce mine --tier smoke --record")
    assert "every bit counts" in str(complaint("mine", [1.0, 2.0 + 1e-15, 4.0], expected, exact=True))
    assert "step 1: loss nan" in str(complaint("mine", [float("nan"), 2.0, 4.0], expected, exact=False))
    assert "2 losses, 3 are recorded" in str(complaint("mine", expected[:2], expected, exact=False))
    assert str(complaint("mine", expected, None, exact=False)).startswith("not recorded; ")


def test_a_variant_that_is_recorded_and_not_run_any_more_is_named() -> None:
    one = of("glyphs_pixel_nn")
    record = one.about["measured"]["smoke"]
    about = {**one.about, "measured": {"smoke": {**record, "losses": {**record["losses"], "gone": [1.0]}}}}
    found = smoke.smoke(one.name, about)
    assert found.verdict == "FAIL"
    assert "gone, it is recorded, and not run any more" in "\n".join(found.lines())


def test_a_recipe_without_a_record_says_how_to_get_one() -> None:
    one = of("glyphs_pixel_nn")
    found = smoke.smoke(one.name, {**one.about, "measured": {}})
    assert found.lines() == [
        "glyphs_pixel_nn: NO RECORD for small; record them with: metalearn reproduce glyphs_pixel_nn --tier "
        "smoke --record"
    ]
    assert json.dumps(found.as_json())
