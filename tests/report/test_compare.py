"""What is compared with what, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.errors import ConfigError
from metalearn.report import statistics
from metalearn.report.compare import LEVEL, as_json, compare, enough
from metalearn.report.compare_text import text
from metalearn.report.scatter import scatter
from tests.report.judged import PROTOCOL, names_of, untrained, write_evaluation, write_result

RNG = np.random.default_rng(0)
DIFFICULTY = RNG.normal(1.5, 1.0, 300)


def accuracies(shift: float, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    return list(rng.binomial(5, 1 / (1 + np.exp(-DIFFICULTY - shift))) / 5)


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two methods of one seed each, the first better; the second's tasks are in another order."""
    write_result(tmp_path / "a", {"accuracy": accuracies(0.6, 1)})
    values, names = accuracies(0.0, 2), names_of(300)
    write_result(tmp_path / "b", {"accuracy": values[::-1]}, order=1, tasks=names[::-1])
    return [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.fixture
def seeds(tmp_path: Path) -> list[str]:
    """Two methods of three seeds, 1 point apart on average, where seeds differ by 5."""
    for order, shift in ((2, 0.1), (1, 0.0)):
        for seed, own in enumerate((-0.5, 0.0, 0.5)):
            write_result(
                tmp_path / f"order-{order}_seed-{seed}",
                {"accuracy": accuracies(shift + own, 10 * order + seed)},
                order=order,
                seed=seed,
            )
    return [str(tmp_path)]


def test_tasks_are_paired_by_what_they_are(two: list[str]) -> None:
    found = compare(two)
    [pair] = found.pairs
    assert found.paired
    expected = np.array(accuracies(0.6, 1)) - np.array(accuracies(0.0, 2))
    assert pair.difference == pytest.approx(expected.mean())
    assert pair.paired is not None
    assert pair.paired.t == pytest.approx(statistics.t_interval(expected))
    assert (pair.paired.wins, pair.paired.losses) == ((expected > 0.1).sum(), (expected < -0.1).sum())
    assert sum((pair.paired.wins, pair.paired.ties, pair.paired.losses)) == 300


def test_a_task_on_which_both_diverged_alike_leaves_the_others_what_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low, high = (list(rng.uniform(0.1, 0.2, 200) + shift) for shift in (0.0, 0.01))
    write_result(tmp_path / "a", {"mse": [*low, 1e5]})
    write_result(tmp_path / "b", {"mse": [*high, 1e5 + 0.01]}, order=1)
    [pair] = compare([str(tmp_path)]).pairs
    assert pair.paired is not None
    assert pair.paired.ties == 1
    assert pair.difference == pytest.approx(sum(pair.paired.t) / 2, rel=1e-9)
    assert pair.difference == pytest.approx((np.array(low) - np.array(high)).sum() / 201)


def test_a_task_that_was_drawn_twice_is_paired_with_its_own_repetition(tmp_path: Path) -> None:
    names = ["x", "y", "x"]
    write_result(tmp_path / "a", {"accuracy": [0.2, 0.4, 1.0]}, tasks=names)
    write_result(tmp_path / "b", {"accuracy": [0.0, 0.2, 0.6]}, tasks=["y", "x", "x"], order=1)
    [pair] = compare([str(tmp_path)]).pairs
    assert pair.a.scores.tolist() == [[0.2, 0.4, 1.0]]
    assert pair.b.scores.tolist() == [[0.2, 0.0, 0.6]]


def test_a_task_that_only_one_drew_twice_is_shared_once(tmp_path: Path) -> None:
    write_result(tmp_path / "a", {"accuracy": [0.2, 0.4, 1.0]}, tasks=["x", "y", "x"])
    write_result(tmp_path / "b", {"accuracy": [0.2, 0.4, 0.6]}, tasks=["x", "y", "z"], order=1)
    with pytest.raises(ConfigError, match=r"have 3 tasks each, of which all share 2; .* with --common"):
        compare([str(tmp_path)])
    assert compare([str(tmp_path)], common=True).sides[0].scores.tolist() == [[0.2, 0.4]]


def test_of_sets_that_overlap_the_shared_tasks_are_compared_if_asked_for(tmp_path: Path) -> None:
    write_result(tmp_path / "a", {"accuracy": [0.2, 0.4, 1.0, 0.8]})
    write_result(tmp_path / "b", {"accuracy": [0.0, 0.2]}, tasks=names_of(2, first=1), order=1)
    with pytest.raises(ConfigError, match=r"^these results have 2 to 4 tasks each, of which all share 2; "):
        compare([str(tmp_path)])
    found = compare([str(tmp_path)], common=True)
    assert found.pairs[0].difference == pytest.approx(0.7 - 0.1)
    assert found.left_out == {str(tmp_path / "a"): 2}
    assert "left out: up to 2 tasks of a result that not all results share" in text(found)


def test_what_shares_no_task_is_compared_unpaired_if_asked_for(tmp_path: Path) -> None:
    write_result(tmp_path / "a", {"accuracy": [0.2, 0.4, 1.0, 0.8]})
    write_result(tmp_path / "b", {"accuracy": [0.0, 0.2]}, tasks=names_of(2, first=9), order=1)
    with pytest.raises(ConfigError, match=r"^no task is shared by all results of .*; judge both on the same"):
        compare([str(tmp_path)], common=True)
    found = compare([str(tmp_path)], anyway=True)
    assert not found.paired
    assert found.pairs[0].paired is None
    from scipy import stats

    welch = stats.ttest_ind([0.2, 0.4, 1.0, 0.8], [0.0, 0.2], equal_var=False).confidence_interval()
    assert found.pairs[0].unpaired.t == pytest.approx((welch.low, welch.high))
    p = stats.ttest_ind([0.2, 0.4, 1.0, 0.8], [0.0, 0.2], equal_var=False).pvalue
    assert found.pairs[0].unpaired.p == found.pairs[0].unpaired.holm_p == pytest.approx(p)
    assert "unpaired: the methods were not judged alike" in text(found)


def test_unlike_protocols_are_named_and_compared_unpaired_if_asked_for(tmp_path: Path) -> None:
    write_result(tmp_path / "a", {"accuracy": [0.2, 0.4, 1.0]})
    write_result(
        tmp_path / "b",
        {"accuracy": [0.2, 0.4, 0.9]},
        protocol={"way": 20, "transductive": False, "checkpoint": "last"},
    )
    with pytest.raises(ConfigError) as caught:
        compare([str(tmp_path)])
    assert str(caught.value) == (
        "these results have unlike protocols: way is 5 for way=5 and 20 for way=20; "
        "transductive is true for way=5 and false for way=20; "
        "judge both alike with metalearn eval, or compare unpaired with --anyway"
    )
    found = compare([str(tmp_path)], anyway=True)
    assert (found.paired, found.pairs[0].paired) == (False, None)
    assert found.unlike == {"way": [5, 20], "transductive": [True, False]}
    assert "unlike: way is 5 for way=5, 20 for way=20" in text(found)


def test_inductive_scores_may_come_from_either_kind_of_run(tmp_path: Path) -> None:
    scores = {"accuracy": [0.2, 0.4, 1.0], "accuracy_inductive": [0.2, 0.2, 0.8]}
    write_result(tmp_path / "a", scores)
    write_result(tmp_path / "b", scores, protocol={"transductive": False}, order=1)
    with pytest.raises(ConfigError, match="transductive is true for"):
        compare([str(tmp_path)])
    assert compare([str(tmp_path)], metric="accuracy_inductive").paired


def test_less_of_an_error_is_better(tmp_path: Path) -> None:
    write_result(tmp_path / "a", {"mse": [0.1, 0.2, 0.3, 0.2]})
    write_result(tmp_path / "b", {"mse": [1.1, 2.2, 3.3, 0.1]}, order=1)
    found = compare([str(tmp_path)])
    assert found.pairs[0].paired is not None
    assert (found.pairs[0].paired.wins, found.pairs[0].paired.losses) == (3, 1)
    assert "mse (less is better)" in text(found)


def test_one_seed_says_nothing_of_others(two: list[str]) -> None:
    shown = text(compare(two))
    assert (
        "This says something of these trained models, and nothing of other seeds: it takes 3 seeds of a "
        "method, and algo.order=2 has 1 and algo.order=1 has 1.\nWith 1 seed this is not enough to say "
        "which method is better." in shown
    )
    assert "over seeds and tasks" not in shown
    for name in ("paired t", "paired bootstrap", "Wilcoxon", "d_z", "win / tie / loss", "80% power"):
        assert name in shown


def test_models_differ_where_methods_need_not(seeds: list[str]) -> None:
    """300 tasks tell the models apart better than three seeds tell the methods."""
    found = compare(seeds)
    [pair] = found.pairs
    assert pair.over_seeds is not None
    assert pair.paired is not None
    assert pair.over_seeds.interval.holds(0.0)
    fixed, over = pair.paired.t, pair.over_seeds.interval
    assert over.high - over.low > 2 * (fixed.high - fixed.low)
    shown = text(found)
    assert "With 3 seeds this is not enough to say which is better: the interval over seeds holds 0." in shown
    assert "variance of A − B" in shown
    assert "0, 1, 2" in shown
    assert as_json(found)["pairs"][0]["enough"] is False


def test_three_seeds_can_be_enough(tmp_path: Path) -> None:
    for order, shift in ((2, 1.0), (1, 0.0)):
        for seed in range(3):
            scores = {"accuracy": accuracies(shift, 10 * order + seed)}
            write_result(tmp_path / f"{order}_{seed}", scores, order=order, seed=seed)
    found = compare([str(tmp_path)])
    assert text(found).endswith("Over seeds and tasks, algo.order=2 is better.")
    assert as_json(found)["pairs"][0]["enough"] is True


def test_two_seeds_give_no_interval_over_seeds(tmp_path: Path) -> None:
    for order in (2, 1):
        for seed in range(2):
            scores = {"accuracy": accuracies(0.0, 10 * order + seed)}
            write_result(tmp_path / f"{order}_{seed}", scores, order=order, seed=seed)
    found = compare([str(tmp_path)])
    assert found.pairs[0].over_seeds is None
    assert "With 2 seeds this is not enough to say which method is better." in text(found)


class TestTheSameRuns:
    @pytest.fixture
    def evaluated_twice(self, tmp_path: Path) -> list[str]:
        """Three runs whose seeds differ by far more than one adaptation step from three."""
        for seed, own in enumerate((-0.4, 0.0, 0.4)):
            run_dir = tmp_path / f"seed-{seed}"
            write_result(run_dir, {"accuracy": accuracies(own, seed)}, seed=seed)
            for steps in (1, 3):
                protocol = {**PROTOCOL, "checkpoint": "best", "order": 2, "adaptation_steps": steps}
                scores = {"accuracy": accuracies(own + 0.4 * (steps > 1), seed)}
                folder = run_dir / "evals" / f"steps-{steps}"
                write_evaluation(folder, scores, names_of(300), seed, protocol)
        return [str(tmp_path / "*" / "evals" / "*")]

    def test_seeds_are_paired(self, evaluated_twice: list[str]) -> None:
        found = compare(evaluated_twice)
        [pair] = found.pairs
        assert pair.seeds_paired
        assert pair.over_seeds == statistics.mean_over_seeds(pair.a.scores - pair.b.scores)
        apart = statistics.over_seeds(pair.a.scores, pair.b.scores)
        assert apart.interval.holds(0.0)
        assert enough(pair)
        assert as_json(found)["pairs"][0]["seeds_paired"] is True
        assert "over seeds and tasks; seeds are paired, as both are of the same runs\n" in text(found)

    def test_of_other_runs_they_are_not(self, seeds: list[str]) -> None:
        found = compare(seeds)
        assert not found.pairs[0].seeds_paired
        assert "over seeds and tasks\n" in text(found)


class TestNothingToTrain:
    def test_one_result_stands_beside_three_seeds(self, tmp_path: Path) -> None:
        for seed in range(3):
            write_result(tmp_path / f"a{seed}", {"accuracy": accuracies(1.0, seed)}, seed=seed)
        pixels = {"choices": {"algo": "pixel_nn", "data": "glyphs"}, "algo": {"distance": "cosine"}}
        write_result(
            tmp_path / "b", {"accuracy": accuracies(0, 9)}, step=0, protocol={"checkpoint": "last"}, **pixels
        )
        found = compare([str(tmp_path)])
        assert [side.trains for side in found.sides] == [True, False]
        assert found.pairs[0].over_seeds is not None
        assert "0 (no matter)" in text(found)

    def test_seeds_that_all_score_alike_are_none(self, tmp_path: Path) -> None:
        for seed in range(2):
            for name, shift, order in (("a", 1.0, 2), ("b", 0.0, 1)):
                scores = {"accuracy": accuracies(shift, order)}
                untrained(write_result(tmp_path / f"{name}{seed}", scores, seed=seed, order=order))
        found = compare([str(tmp_path)])
        assert found.pairs[0].why_not == "neither method depends on its seed"
        assert text(found).endswith(
            "On tasks like these, algo.order=2 is better; neither method depends on its seed."
        )

    def test_random_weights_that_nothing_trains_do_depend_on_the_seed(self, tmp_path: Path) -> None:
        for seed in range(2):
            untrained(write_result(tmp_path / f"a{seed}", {"accuracy": accuracies(0, seed)}, seed=seed))
        untrained(write_result(tmp_path / "b", {"accuracy": accuracies(0, 9)}, order=1))
        assert [side.trains for side in compare([str(tmp_path)]).sides] == [True, False]

    def test_trained_seeds_that_score_alike_are_seeds(self, tmp_path: Path) -> None:
        """100% everywhere: three models that were trained, of which nobody knows that a fourth would be."""
        for seed in range(3):
            write_result(tmp_path / f"a{seed}", {"accuracy": [1.0] * 40}, seed=seed)
            write_result(tmp_path / f"b{seed}", {"accuracy": [1.0, 0.8] * 20}, seed=seed, order=1)
        found = compare([str(tmp_path)])
        assert [side.trains for side in found.sides] == [True, True]
        assert found.pairs[0].over_seeds is not None

    def test_tasks_that_are_left_out_say_whether_seeds_matter(self, tmp_path: Path) -> None:
        """Random weights, alike on the two easy tasks that the other method met."""
        for seed in range(2):
            scores = {"accuracy": [1.0, 1.0, 0.2 + 0.2 * seed, 0.6]}
            untrained(write_result(tmp_path / f"a{seed}", scores, seed=seed))
        untrained(write_result(tmp_path / "b", {"accuracy": [0.8, 1.0]}, order=1))
        found = compare([str(tmp_path)], common=True)
        assert found.sides[0].scores.tolist() == [[1.0, 1.0], [1.0, 1.0]]
        assert [side.trains for side in found.sides] == [True, False]

    def test_weights_of_before_the_first_step_do_depend_on_the_seed(self, tmp_path: Path) -> None:
        write_result(tmp_path / "a", {"accuracy": [0.2, 0.4]}, step=0, protocol={"checkpoint": "step-000000"})
        write_result(tmp_path / "b", {"accuracy": [0.2, 0.6]}, step=0, order=1, trainer={"outer_steps": 0})
        assert [side.trains for side in compare([str(tmp_path)], anyway=True).sides] == [True, True]


def test_models_that_score_alike_on_every_task_are_a_tie(tmp_path: Path) -> None:
    write_result(tmp_path / "a", {"accuracy": [0.2, 0.4, 1.0]})
    write_result(tmp_path / "b", {"accuracy": [0.2, 0.4, 1.0]}, order=1)
    found = compare([str(tmp_path)])
    told = as_json(found)["pairs"][0]["these_models"]
    assert told == {
        "t": [0.0, 0.0],
        "p": 1.0,
        "holm_p": 1.0,
        "bootstrap": [0.0, 0.0],
        "wilcoxon_p": 1.0,
        "wilcoxon_holm_p": 1.0,
        "effect_size": 0.0,
        "wins": 0,
        "ties": 3,
        "losses": 0,
        "tasks_needed": None,
    }
    assert "no number tells a difference of 0 from 0" in text(found)


class TestSeveralMethods:
    @pytest.fixture
    def four(self, tmp_path: Path) -> list[str]:
        for order in (1, 2, 3, 4):
            for seed in range(3):
                scores = {"accuracy": accuracies(0.2 * order, 10 * order + seed)}
                write_result(tmp_path / f"{order}_{seed}", scores, order=order, seed=seed)
        return [str(tmp_path)]

    def test_all_pairs_are_told_with_p_corrected(self, four: list[str]) -> None:
        found = compare(four)
        assert len(found.pairs) == 6
        tests = [pair.paired for pair in found.pairs if pair.paired]
        assert [test.holm_p for test in tests] == statistics.holm([test.p for test in tests])
        ranks = statistics.holm([test.wilcoxon_p for test in tests])
        assert [test.wilcoxon_holm_p for test in tests] == ranks
        welch = statistics.holm([pair.unpaired.p for pair in found.pairs])
        assert [pair.unpaired.holm_p for pair in found.pairs] == welch
        over = [pair.over_seeds.p for pair in found.pairs if pair.over_seeds]
        assert [pair.over_seeds_holm for pair in found.pairs] == statistics.holm(over)
        shown = text(found)
        assert "p corrected for 6 pairs by Holm's method" in shown
        for name in ("A − B", "B − C", "C − D"):
            assert shown.count(name) == 3  # over tasks, over seeds, and what follows

    def test_what_is_enough_for_one_pair_need_not_be_for_six(self, tmp_path: Path) -> None:
        for order, shift in ((2, 1.0), (1, 0.0)):
            for seed in range(3):
                scores = {"accuracy": accuracies(shift, 10 * order + seed)}
                write_result(tmp_path / f"{order}_{seed}", scores, order=order, seed=seed)
        found = compare([str(tmp_path)])
        assert enough(found.pairs[0])
        one_of_six = replace(found.pairs[0], over_seeds_holm=0.06)
        assert not enough(one_of_six)
        assert text(replace(found, pairs=[one_of_six])).endswith("p is too large for so many pairs.")

    @pytest.mark.parametrize("anyway", [False, True])
    def test_p_is_corrected_for_every_pair_that_is_told(self, anyway: bool, tmp_path: Path) -> None:
        """Three methods without seeds: the smallest p would do alone, and does not as one of three."""
        rest = np.random.default_rng(0).standard_normal((4, 400))
        rest = (rest - rest.mean(1, keepdims=True)) / rest.std(1, ddof=1, keepdims=True)
        for order, shift in ((1, 0.0), (2, 0.105), (3, 0.05)):
            scores = {"mse": list(5.0 + shift + rest[order] * (order > 1))}
            tasks = names_of(400, first=1000 * order if anyway else 0)
            untrained(write_result(tmp_path / f"{order}", scores, order=order, tasks=tasks))
        found = compare([str(tmp_path)], anyway=anyway)
        pair = found.pairs[0]
        assert 0.03 < (pair.paired or pair.unpaired).p < LEVEL
        told = {(pair.a.label[-1], pair.b.label[-1]): enough(pair) for pair in found.pairs}
        assert told == {("1", "2"): False, ("1", "3"): False, ("2", "3"): False}
        assert enough(compare([str(tmp_path / "1"), str(tmp_path / "2")], anyway=anyway).pairs[0])

    def test_the_largest_p_is_corrected_for_pairs_that_have_none(self, tmp_path: Path) -> None:
        for order, count in ((1, 3), (2, 3), (3, 1)):
            for seed in range(count):
                scores = {"accuracy": accuracies(0.3 * order, 10 * order + seed)}
                write_result(tmp_path / f"{order}_{seed}", scores, order=order, seed=seed)
        pair = compare([str(tmp_path)]).pairs[0]
        assert pair.over_seeds is not None
        assert pair.over_seeds_holm == min(1.0, 3 * pair.over_seeds.p)

    def test_at_most_six_pairs_are_drawn(self, four: list[str], tmp_path: Path) -> None:
        for seed in range(3):
            scores = {"accuracy": accuracies(0.0, 90 + seed)}
            write_result(tmp_path / f"5_{seed}", scores, order=5, seed=seed)
        left_out = scatter(compare(four), tmp_path / "all.png")
        names = [(pair.a.label[-1], pair.b.label[-1]) for pair in left_out]
        assert names == [("2", "5"), ("3", "4"), ("3", "5"), ("4", "5")]


def test_the_picture_shows_every_task(two: list[str], tmp_path: Path) -> None:
    assert scatter(compare(two), tmp_path / "new" / "two.png") == []
    pixels = np.asarray(Image.open(tmp_path / "new" / "two.png").convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0] > 60).sum()
    red = (pixels[..., 0] - pixels[..., 2] > 100).sum()
    assert blue > 2000
    assert red > 50


def test_json_has_no_number_that_json_lacks(seeds: list[str]) -> None:
    told = as_json(compare(seeds))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["methods"][0].keys() == {
        *("label", "folders", "seeds", "trains", "tasks", "mean", "ci95", "variance")
    }
    assert told["pairs"][0].keys() == {
        *(
            "a",
            "b",
            "difference",
            "these_models",
            "unpaired",
            "over_seeds",
            "no_interval_over_seeds",
            "seeds_paired",
            "enough",
        )
    }
