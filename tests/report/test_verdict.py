"""Verdicts from hand-computed numbers."""

from __future__ import annotations

import math

import pytest

from metalearn.report.verdict import Measured, ours, pooled, published


def one(mean: float, ci95: float = 0.3, *, seed: int = 0, plan: str | None = "loop") -> Measured:
    return Measured(mean, ci95, None, (seed,), plan)


def several(mean: float, std: float, count: int = 3, ci95: float = 0.3) -> Measured:
    return Measured(mean, ci95, std, tuple(range(count)), "loop")


def test_with_one_equal_seed_and_plan_only_tasks_are_counted() -> None:
    """1.96·√((0.3/1.96)² + (0.4/1.96)²) = 0.5"""
    found = ours(one(97.0, 0.3), one(96.6, 0.4))
    assert found.verdict == "PASS"
    assert found.reason == "the same seed and plan"
    assert found.difference == pytest.approx(0.4)
    assert found.allowed == pytest.approx(0.5)
    assert found.detectable == pytest.approx(0.5 / 1.96 * (1.96 + 0.8416))


@pytest.mark.parametrize(
    ("difference", "verdict"), [(0.5, "PASS"), (-0.5, "PASS"), (0.501, "FAIL"), (-0.501, "FAIL")]
)
def test_the_boundary_passes(difference: float, verdict: str) -> None:
    assert ours(one(97.0 + difference, 0.3), one(97.0, 0.4)).verdict == verdict


def test_several_seeds_add_their_spread() -> None:
    """s² = (2·1² + 4·2²) / 6 = 3; 3·(1/3 + 1/5) = 1.6; 1.96·√1.6 = 2.479 beside tasks without spread."""
    found = ours(several(90.0, 1.0, 3, 0.0), several(92.4, 2.0, 5, 0.0))
    assert pooled(1.0, 3, 2.0, 5) == pytest.approx(math.sqrt(3))
    assert found.allowed == pytest.approx(1.96 * math.sqrt(1.6))
    assert found.verdict == "PASS"
    assert ours(several(90.0, 1.0, 3, 0.0), several(92.5, 2.0, 5, 0.0)).verdict == "FAIL"


def test_spread_and_tasks_add_up_as_variances() -> None:
    """(0.3/1.96)²·2 + 0.5²·(1/3 + 1/3)"""
    found = ours(several(97.0, 0.5), several(97.0, 0.5))
    assert found.allowed == pytest.approx(1.96 * math.sqrt(2 * (0.3 / 1.96) ** 2 + 0.25 * 2 / 3))


@pytest.mark.parametrize(
    ("new", "recorded", "reason"),
    [
        (one(97.0, seed=1), one(97.0), "seeds 1 against 0 of the record; run it with --seeds 3 --record"),
        (one(97.0), several(97.0, 0.5), "seeds 0 against 0, 1, 2 of the record; run it with --seeds 3"),
        (several(97.0, 0.5), one(97.0), "seeds 0, 1, 2 against 0 of the record"),
        (one(97.0), one(97.0, plan="vmap"), "the plan is another: loop, recorded vmap"),
        (one(97.0), one(97.0, plan=None), "the record does not say by which plan it was computed"),
    ],
)
def test_one_seed_of_another_kind_says_nothing(new: Measured, recorded: Measured, reason: str) -> None:
    found = ours(new, recorded)
    assert found.verdict == "INCONCLUSIVE"
    assert found.reason.startswith("one seed does not say how much seeds differ")
    assert reason in found.reason
    assert found.allowed is None


def test_what_is_not_finite_fails() -> None:
    assert ours(one(math.nan), one(97.0)).verdict == "FAIL"


def test_a_record_that_was_rounded_equals_itself_without_any_spread() -> None:
    assert ours(one(97.85, 0.0), one(97.85, 0.0)).verdict == "PASS"


PROTOCOL = {"outer_steps": 60000, "way": 5}


@pytest.mark.parametrize(
    ("mean", "higher", "verdict", "reason"),  # of one seed, which says nothing of others
    [
        (98.6, True, "REACHED", "within 0.3 of it"),
        (99.0, True, "REACHED", "or better"),
        (98.4, True, "REACHED", "within 0.3 of it"),
        (98.3, True, "BELOW", "0.4 less than published, more than the interval of 0.3"),
        (99.1, False, "BELOW", "0.4 more than published, more than the interval of 0.3"),
        (99.0, False, "REACHED", "within 0.3 of it"),
        (97.0, False, "REACHED", "or better"),
    ],
)
def test_published_is_reached_where_the_interval_reaches_it(
    mean: float, higher: bool, verdict: str, reason: str
) -> None:
    found = published(98.7, PROTOCOL, {**PROTOCOL, "shot": 1}, one(mean), higher_is_better=higher)
    assert (found.verdict, found.reason) == (verdict, f"{reason}, of these models, over tasks only")


def test_the_interval_of_several_seeds_counts_their_spread() -> None:
    """Variances 0.5²/3 of two degrees of freedom, and (0.3/1.96)² of tasks: 0.1068 of 3.283, whose quantile
    is 3.034; 3.034·√0.1068 = 0.991.
    """
    new = several(98.0, 0.5, 3)
    found = published(98.98, PROTOCOL, PROTOCOL, new, higher_is_better=True)
    assert (found.verdict, found.reason) == ("REACHED", "within 0.991 of it")
    assert published(99.0, PROTOCOL, PROTOCOL, new, higher_is_better=True).verdict == "BELOW"


def test_two_seeds_say_something_of_their_models_only() -> None:
    found = published(98.31, PROTOCOL, PROTOCOL, several(98.0, 5.0, 2), higher_is_better=True)
    assert found.verdict == "BELOW"
    assert found.reason.endswith("more than the interval of 0.3, of these models, over tasks only")


def test_seeds_without_spread_leave_the_interval_over_tasks() -> None:
    found = published(98.2, PROTOCOL, PROTOCOL, several(98.0, 0.0), higher_is_better=True)
    assert (found.verdict, found.reason) == ("REACHED", "within 0.3 of it")


def test_another_protocol_is_not_compared_and_the_facts_are_named() -> None:
    facts = {"outer_steps": 10000, "way": 5, "transductive": False}
    found = published(
        98.7, {**PROTOCOL, "transductive": True, "batch_size": 16}, facts, one(99), higher_is_better=True
    )
    assert found.verdict == "NOT COMPARABLE"
    assert found.reason == (
        "outer_steps 10000 instead of 60000, transductive false instead of true, batch_size unknown instead "
        "of 16"
    )


@pytest.mark.parametrize(
    ("figure", "protocol", "higher", "verdict", "reason"),
    [
        (None, PROTOCOL, True, "NO PUBLISHED FIGURE", ""),
        (98.7, {}, True, "NOT COMPARABLE", "the recipe does not say how the figure was measured"),
        (98.7, PROTOCOL, None, "NOT COMPARABLE", "nothing says whether more of this metric is better"),
    ],
)
def test_what_is_not_known_is_not_compared(
    figure: float | None, protocol: dict[str, int], higher: bool | None, verdict: str, reason: str
) -> None:
    found = published(figure, protocol, PROTOCOL, one(99), higher_is_better=higher)
    assert (found.verdict, found.reason) == (verdict, reason)
