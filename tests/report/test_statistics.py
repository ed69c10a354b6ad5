"""Intervals and tests: worked by hand where that is possible, and held against simulated truth."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from metalearn.engine.evaluate import EvalSpec, looks, summarise
from metalearn.report import statistics
from metalearn.report.statistics import Components, Interval
from tests.report import simulation

REPETITIONS = 400  # of which 95% held is within 2.2 points of the truth, in 95 of 100 seeds


class TestPaired:
    def test_t_is_that_of_the_textbook(self) -> None:
        values = np.array([1.0, 2.0, 3.0, 4.0])
        low, high = statistics.t_interval(values)
        half = 3.182446 * np.sqrt(5 / 3) / 2
        assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-6)

    def test_bootstrap_is_near_t_and_the_same_every_time(self) -> None:
        values = np.random.default_rng(1).standard_normal(2000) + 0.05
        first, second = (statistics.bootstrap_interval(values) for _ in range(2))
        assert first == second
        assert first == pytest.approx(statistics.t_interval(values), abs=0.004)

    def test_bootstrap_of_2000_tasks_takes_less_than_half_a_second(self) -> None:
        values = np.random.default_rng(1).standard_normal(2000)
        began = time.process_time()
        statistics.bootstrap_interval(values)
        assert time.process_time() - began < 0.5

    @pytest.mark.parametrize("kind", [np.float32, np.float64])
    def test_equal_differences_of_fractions_are_ties(self, kind: type) -> None:
        """Of float32 as of decimals: a small difference of large scores is the hardest."""
        a = np.array([0.8, 1.0, 0.6, 0.4, 1.0, 0.9])
        b = np.array([0.6, 0.8, 0.6, 0.6, 0.99, 0.89])
        if kind is np.float32:
            a, b = a.astype(kind).astype(float), b.astype(kind).astype(float)
        values = statistics.differences(a, b)
        assert values[2] == 0.0
        assert len({*np.abs(values)}) > 3
        found = statistics.tied(values, statistics.magnitudes(a, b))
        assert found[0] == found[1] == -found[3] != 0.0
        assert found[4] == found[5] != 0.0
        assert len({*np.abs(found)}) == 3
        assert found == pytest.approx(values, rel=1e-4)

    def test_one_diverged_task_leaves_the_differences_of_all_others(self) -> None:
        rng = np.random.default_rng(0)
        a, b = 0.02 + 0.01 * rng.random(300), 0.01 + 0.01 * rng.random(300)
        alone = statistics.differences(a, b)
        a, b = np.append(a, 1e5), np.append(b, 1e5 + 0.01)  # which float32 does not tell apart
        values = statistics.differences(a, b)
        assert values[:-1].tolist() == alone.tolist() == (a - b)[:-1].tolist()
        assert values[-1] == 0.0
        assert statistics.t_interval(values).low > 0.0
        assert statistics.wilcoxon_p(statistics.tied(values, statistics.magnitudes(a, b))) < 1e-20

    def test_ranks_of_what_is_not_equal_stay(self) -> None:
        values = np.random.default_rng(0).standard_normal(2000)
        found = statistics.tied(values, np.ones(2000))
        assert found == pytest.approx(values, abs=1e-6)
        assert statistics.wilcoxon_p(found) == pytest.approx(statistics.wilcoxon_p(values), rel=1e-3)

    @pytest.mark.parametrize("step", [0.2, 0.01])
    def test_the_same_difference_but_for_float32_has_no_size(self, step: float) -> None:
        exact = np.linspace(0.5, 1.0, 11)
        a, b = (side.astype(np.float32).astype(float) for side in (exact, exact - step))
        values, scale = statistics.differences(a, b), statistics.magnitudes(a, b)
        assert values.std() > 0.0
        assert statistics.effect_size(values, scale) is None
        assert statistics.tasks_needed(values, scale) == 2

    def test_differences_that_cancel_are_told_from_0_by_no_number_of_tasks(self) -> None:
        values = np.array([0.1, 0.2, -0.3, 0.1 + 0.2, -0.3])
        assert values.mean() != 0.0
        assert statistics.tasks_needed(values) is None

    def test_p_of_t_is_below_a_twentieth_where_the_interval_leaves_0_out(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(50):
            values = rng.standard_normal(20) + 0.4
            assert (statistics.t_p(values) < 0.05) != statistics.t_interval(values).holds(0.0)
        assert (statistics.t_p(np.zeros(4)), statistics.t_p(np.ones(4))) == (1.0, 0.0)

    def test_differences_of_tiny_scores_are_kept(self) -> None:
        found = statistics.differences(np.array([3e-9, 1e-9]), np.array([1e-9, 2e-9]))
        assert found == pytest.approx([2e-9, -1e-9], rel=1e-5)

    def test_wilcoxon_ranks_zeros_and_then_drops_them(self) -> None:
        values = np.array([0.0] * 10 + [0.2] * 30 + [-0.2] * 15)
        # by hand: all others have rank 33; Pratt's variance leaves out the ten lowest ranks and corrects ties
        ranks, count, zeros, tied = 33.0, 55, 10, 45
        mean = (count * (count + 1) - zeros * (zeros + 1)) / 4
        variance = (
            count * (count + 1) * (2 * count + 1)
            - zeros * (zeros + 1) * (2 * zeros + 1)
            - (tied**3 - tied) / 2
        ) / 24
        z = (30 * ranks - mean) / np.sqrt(variance)
        assert statistics.wilcoxon_p(values) == pytest.approx(2 * stats.norm.sf(z), rel=1e-9)

    @pytest.mark.parametrize("count", [2, 5, 600])
    def test_nothing_but_ties_is_no_difference(self, count: int) -> None:
        values = np.zeros(count)
        assert statistics.wilcoxon_p(values) == 1.0
        assert statistics.effect_size(values) == 0.0
        assert statistics.tasks_needed(values) is None
        assert statistics.t_interval(values) == statistics.bootstrap_interval(values) == Interval(0.0, 0.0)

    @pytest.mark.parametrize("count", [2, 3, 12, 60])
    def test_the_same_difference_everywhere_has_no_size(self, count: int) -> None:
        values = np.full(count, 0.5)
        assert statistics.effect_size(values) is None
        assert statistics.tasks_needed(values) == 2
        assert statistics.t_interval(values) == statistics.bootstrap_interval(values) == Interval(0.5, 0.5)
        assert 0.0 < statistics.wilcoxon_p(values) <= 1.0

    def test_holm_is_that_of_the_paper(self) -> None:
        assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert statistics.holm([0.7, 0.9]) == [1.0, 1.0]
        assert statistics.holm([]) == []

    def test_holm_counts_questions_that_have_no_p(self) -> None:
        assert statistics.holm([0.01, 0.02], 3) == pytest.approx([0.03, 0.04])

    def test_so_many_tasks_resolve_a_difference_in_four_of_five_repetitions(self) -> None:
        rng = np.random.default_rng(3)
        pilot = rng.standard_normal(1000)
        pilot = 0.2 + (pilot - pilot.mean()) / pilot.std(ddof=1)
        needed = statistics.tasks_needed(pilot)
        assert needed == 197  # (1.96 + 0.84)² / 0.2²
        found = [statistics.t_interval(0.2 + rng.standard_normal(needed)) for _ in range(1000)]
        assert sum(not interval.holds(0.0) for interval in found) / 1000 == pytest.approx(0.8, abs=0.04)


class TestOverSeeds:
    def test_variance_is_split_as_in_the_analysis_of_variance(self) -> None:
        scores = np.array([[1.0, 2.0, 6.0], [3.0, 5.0, 7.0]])
        # by hand: means of rows 3, 5, of columns 2, 3.5, 6.5, of all 4; residuals ±(0, 0.5, 0.5)
        assert statistics.mean_squares(scores) == pytest.approx((6.0, 10.5, 0.5))
        assert statistics.components(scores) == pytest.approx((5.5 / 3, 5.0, 0.5))

    def test_components_are_found_again(self) -> None:
        rng = np.random.default_rng(0)
        found = []
        for _ in range(200):
            tasks, rest = 5.0 * rng.standard_normal(600), 8.0 * rng.standard_normal((5, 600))
            found.append(statistics.components(2.0 * rng.standard_normal((5, 1)) + tasks + rest))
        assert np.mean(found, 0) == pytest.approx([4.0, 25.0, 64.0], rel=0.1)

    def test_seeds_that_do_not_differ_have_no_negative_variance(self) -> None:
        scores = np.random.default_rng(0).standard_normal((3, 50))
        assert min(statistics.components(scores - scores.mean(1, keepdims=True))) >= 0.0

    def test_degrees_of_freedom_are_satterthwaites(self) -> None:
        assert statistics.satterthwaite([(2.0, 2.0), (1.0, 4.0)]) == pytest.approx((3.0, 9.0 / 2.25))

    def test_the_interval_is_what_the_three_variances_make_it(self) -> None:
        rng = np.random.default_rng(0)
        a, b = (
            2.0 * rng.standard_normal((seeds, 1)) + rng.standard_normal(40) + rng.standard_normal((seeds, 40))
            for seeds in (3, 4)
        )
        by_task = a.mean(0) - b.mean(0)
        rest = sum(statistics.mean_squares(side).rest / side.size for side in (a, b))
        terms = [np.var(side.mean(1), ddof=1) / len(side) for side in (a, b)]
        terms.append(np.var(by_task, ddof=1) / 40 - rest)
        df = sum(terms) ** 2 / (terms[0] ** 2 / 2 + terms[1] ** 2 / 3 + terms[2] ** 2 / 39)
        found = statistics.over_seeds(a, b)
        assert (found.df, found.standard_error) == pytest.approx((df, np.sqrt(sum(terms))))
        half = stats.t.ppf(0.975, df) * np.sqrt(sum(terms))
        assert [*found.interval] == pytest.approx([by_task.mean() - half, by_task.mean() + half])
        assert sum(found.parts) == pytest.approx(sum(terms))  # no seed variance was cut off at 0

    def test_the_interval_is_never_surer_than_that_of_the_trained_models(self) -> None:
        scores = np.random.default_rng(0).standard_normal((6, 50))
        alike = scores - scores.mean(1, keepdims=True)  # seeds agree to the last digit
        found = statistics.over_seeds(alike[:3] + 1.0, alike[3:])
        alone = statistics.t_interval(alike[:3].mean(0) + 1.0 - alike[3:].mean(0))
        assert [*found.interval] == pytest.approx([*alone])

    def test_a_method_without_seeds_has_no_part_in_the_variance(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((3, 1)) + rng.standard_normal((3, 400)), rng.standard_normal((1, 400))
        found = statistics.over_seeds(a, b)
        assert found.df < 2.5  # two degrees of freedom of three seeds, hardly more
        both_fixed = statistics.over_seeds(a[:1], b)
        assert both_fixed.interval == pytest.approx(statistics.t_interval(a[0] - b[0]))
        assert both_fixed.parts == Components(0.0, pytest.approx(both_fixed.standard_error**2), 0.0)


class TestCoverage:
    """Fast versions of `scripts/coverage`."""

    @pytest.mark.parametrize("name", ["easy", "hard"])
    def test_paired_intervals_of_discrete_accuracies(self, name: str) -> None:
        for found in simulation.paired(simulation.LOGITS[name], REPETITIONS):
            assert 0.925 <= found.share <= 0.975, found

    @pytest.mark.parametrize(("name", "target"), [("easy", 0.005), ("hard", 0.015)])
    def test_an_evaluation_that_ends_when_it_knows_enough(self, name: str, target: float) -> None:
        found = simulation.sequential(simulation.LOGITS[name], target, 1000, most=2500)
        assert 0.93 <= found.coverage.share <= 0.97, found
        assert found.reached == 1.0
        assert 200 < found.mean_tasks < 2500

    @pytest.mark.parametrize("target", [0.001, 0.01, 0.02])
    def test_it_ends_where_the_engine_ends(self, target: float) -> None:
        """As `evaluate` takes tasks: before every look, those of `looks`."""
        spec = EvalSpec(
            *("test", 0, 650, 2, "best", None, None, False, None, False), seeds=1, ci_target=target, grid=None
        )
        rng = np.random.default_rng(0)
        for _ in range(20):
            scores = rng.binomial(5, rng.uniform(0.5, 1.0), spec.total) / 5
            ended = next(
                (
                    tasks.stop
                    for tasks in looks(spec)
                    if summarise(scores[: tasks.stop].tolist())["ci95"] <= target
                ),
                spec.total,
            )
            assert statistics.stops_after(scores, target) == ended

    def test_a_target_that_is_not_reached_ends_with_the_last_task(self) -> None:
        found = simulation.sequential(simulation.LOGITS["hard"], 0.001, 2, most=450)
        assert (found.mean_tasks, found.reached) == (450, 0.0)

    @pytest.mark.parametrize("seeds", simulation.SEEDS)
    @pytest.mark.parametrize("spread", simulation.SPREADS)
    def test_intervals_over_seeds(self, seeds: int, spread: float) -> None:
        ours, _, tasks_alone = simulation.over_seeds(seeds, spread, 300, resamples=50)
        assert ours.share >= 0.93, ours
        assert ours.width < 14 * max(1.0, spread)  # no interval is right by holding everything
        if spread >= 1.0:  # the same bound finds out the interval that forgets the seeds
            assert tasks_alone.share < 0.8, tasks_alone

    @pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 2.0), (10, 2.0)])
    def test_intervals_of_the_same_runs(self, seeds: int, spread: float) -> None:
        ours, apart = simulation.same_runs(seeds, spread, 300)
        assert 0.93 <= ours.share, ours
        if spread:  # what both have in common is no reason for doubt
            assert ours.width < 0.7 * apart.width
            assert ours.share <= 0.985 < apart.share

    def test_the_plain_bootstrap_is_too_sure_of_few_seeds(self) -> None:
        _, plain, _ = simulation.over_seeds(3, 2.0, 300, resamples=200)
        assert plain.share < 0.9
