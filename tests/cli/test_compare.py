"""compare as a user meets it: its answer, its files, and a sentence for all that cannot be compared."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import answer
from tests.report.judged import names_of, write_result

SCORES = [0.2, 0.4, 0.6, 0.8, 1.0, 0.6, 0.4, 0.8]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, a and b, in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_result(tmp_path / "runs" / "a", {"accuracy": SCORES})
    write_result(tmp_path / "runs" / "b", {"accuracy": [0.2, *SCORES[:-1]]}, order=1)
    return tmp_path


def test_it_answers_whatever_wins_and_says_where_the_picture_is(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for names in (["a", "b"], ["b", "a"]):
        code, shown, complaint = answer(capsys, "compare", *(f"runs/{name}" for name in names))
        assert (code, complaint) == (0, "")
        assert "accuracy (more is better) on 8 tasks, paired task by task" in shown
        assert shown.endswith("\ncompare.png has every task as a point\n")
    assert (runs / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_all_that_is_printed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, complaint = answer(capsys, "compare", "runs", "--json", "--png", "two.png")
    assert (code, complaint) == (0, "")
    told = json.loads(shown)
    assert (told["metric"], told["png"], told["paired"]) == ("accuracy", "two.png", True)
    assert (runs / "two.png").is_file()


def test_json_draws_nothing_that_was_not_asked_for(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "compare.png").write_bytes(b"mine")
    code, shown, _ = answer(capsys, "compare", "runs", "--json")
    assert (code, json.loads(shown)["png"]) == (0, None)
    assert (runs / "compare.png").read_bytes() == b"mine"


def test_patterns_and_folders_name_the_runs_in_them(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["runs"], ["runs/*"], ["runs/[ab]"]):
        code, shown, _ = answer(capsys, "compare", *words, "--json")
        assert [method["label"] for method in json.loads(shown)["methods"]] == [
            "algo.order=2",
            "algo.order=1",
        ]
        assert code == 0


def test_unpaired_has_no_picture(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(runs / "far", {"accuracy": SCORES}, tasks=names_of(8, first=50), order=1)
    code, shown, _ = answer(capsys, "compare", "runs/a", "far", "--anyway")
    assert code == 0
    assert "unpaired" in shown
    assert not (runs / "compare.png").exists()


def complaint_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code, shown, complaint = answer(capsys, "compare", *words)
    assert shown == ""
    assert complaint.count("\n") == 1
    return code, complaint.removeprefix("error: ").removesuffix("\n")


class TestWhatCannotBeCompared:
    def test_sets_of_tasks_that_differ(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_result(runs / "c", {"accuracy": SCORES[:5]}, order=1)
        assert complaint_of(capsys, "runs/a", "c") == (
            2,
            "these results have 5 to 8 tasks each, of which all share 5; compare on those alone "
            "with --common",
        )
        assert answer(capsys, "compare", "runs/a", "c", "--common")[0] == 0

    def test_sets_of_tasks_that_share_nothing(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_result(runs / "c", {"accuracy": SCORES}, tasks=names_of(8, first=50), order=1)
        assert complaint_of(capsys, "runs/a", "c") == (
            2,
            "no task is shared by all results of algo.order=2 and algo.order=1 (8 tasks each); judge both on "
            "the same tasks with metalearn eval, or compare unpaired with --anyway",
        )

    @pytest.mark.parametrize("words", [[], ["--anyway"], ["--common"]])
    def test_seeds_of_one_method_that_share_nothing(
        self, words: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_result(runs / "runs" / "a1", {"accuracy": SCORES}, tasks=names_of(8, first=50), seed=1)
        assert complaint_of(capsys, "runs", *words) == (
            2,
            "seeds of algo.order=2 met different tasks, of which they share 0; name runs that were judged on "
            "the same",
        )

    @pytest.mark.parametrize("words", [[], ["--anyway"]])
    def test_seeds_of_one_method_that_share_some_tasks(
        self, words: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_result(runs / "runs" / "a1", {"accuracy": SCORES}, tasks=names_of(8, first=3), seed=1)
        code, complaint = complaint_of(capsys, "runs", *words)
        assert (code, complaint) == (
            2,
            "seeds of algo.order=2 met different tasks, of which they share 5; name runs that were judged on "
            "the same, or compare on the tasks that all results share with --common",
        )
        assert answer(capsys, "compare", "runs", "--common")[0] == 0

    def test_one_shared_task(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_result(runs / "c", {"accuracy": SCORES}, tasks=names_of(8, first=7), order=1)
        code, complaint = complaint_of(capsys, "runs/a", "c", "--common")
        assert (code, complaint[:50]) == (2, "1 task is shared, from which no interval follows; ")

    def test_unlike_protocols(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_result(runs / "c", {"accuracy": SCORES}, order=1, protocol={"shot": 5, "way": 20})
        code, complaint = complaint_of(capsys, "runs/a", "c")
        assert code == 2
        assert "way is 5 for algo.order=2 and 20 for algo.order=1; shot is 1 for" in complaint

    def test_an_empty_pattern(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert complaint_of(capsys, "runs/x*") == (
            2,
            "runs/x* matches nothing; list the runs with: metalearn ls runs",
        )

    def test_a_run_that_still_trains(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("results.json", "status.json"):
            (runs / "runs" / "b" / name).unlink()
        code, complaint = complaint_of(capsys, "runs")
        assert (code, complaint.split(";")[0]) == (2, "runs/b has no result yet: it is killed")

    def test_one_method(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for seed in (1, 2):
            write_result(runs / "runs" / f"a{seed}", {"accuracy": SCORES}, seed=seed)
        told = "and a comparison needs two methods; name the runs of another one, too"
        assert complaint_of(capsys, "runs/a") == (2, f"runs/a is one result, {told}")
        assert complaint_of(capsys, "runs/a*") == (
            2,
            f"these 3 results are one method with seeds 0, 1, 2, {told}",
        )

    def test_metrics_that_differ_or_are_not_there(
        self, runs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_result(runs / "c", {"mse": SCORES, "accuracy": SCORES}, seed=1, order=3)
        assert complaint_of(capsys, "runs/a", "c") == (
            2,
            'the primary metric is "accuracy" for algo.order=2 and "mse" for algo.order=3; choose one '
            "that all have with --metric NAME",
        )
        assert answer(capsys, "compare", "runs/a", "c", "--metric", "accuracy")[0] == 0
        code, complaint = complaint_of(capsys, "runs", "--metric", "ece")
        assert (code, complaint[-36:]) == (2, "has no column ece; choose one of accuracy"[-36:])

    def test_a_missing_or_torn_table(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = runs / "runs" / "b" / "eval_test.csv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
        code, complaint = complaint_of(capsys, "runs")
        assert code == 3
        assert "eval_test.csv is torn: it has 6 whole or broken rows where results.json says 8" in complaint
        path.unlink()
        code, complaint = complaint_of(capsys, "runs")
        assert code == 3
        assert "eval_test.csv cannot be read (No such file or directory); judge again with:" in complaint

    def test_a_score_that_is_no_number(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_result(runs / "c", {"accuracy": [*SCORES[:-1], float("nan")]}, order=3)
        code, complaint = complaint_of(capsys, "runs/a", "c")
        assert code == 3
        assert "c/eval_test.csv has accuracy=nan for task 7; a mean over such tasks says nothing" in complaint

    def test_a_picture_that_cannot_be_written(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert complaint_of(capsys, "runs", "--png", "x.svg") == (
            2,
            "--png x.svg is no name of a picture; expected a file that ends in .png",
        )
        (runs / "file").touch()
        code, complaint = complaint_of(capsys, "runs", "--png", "file/x.png")
        assert (code, complaint.split(":")[0]) == (2, "--png file/x.png cannot be written")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Two runs of 2,000 tasks."""
    rng = np.random.default_rng(0)
    for order in (1, 2):
        scores = {"accuracy": list(rng.binomial(5, 0.9, 2000) / 5)}
        write_result(tmp_path / "runs" / str(order), scores, order=order)
    return tmp_path


def test_it_takes_no_torch(large: Path) -> None:
    program = (
        "import sys\n"
        "from metalearn.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "print(code, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "compare", "runs"],
        capture_output=True,
        text=True,
        check=True,
        cwd=large,
    )
    assert done.stderr.split() == ["0", "False"]


@pytest.mark.slow
def test_two_runs_of_2000_tasks_take_less_than_two_seconds(large: Path) -> None:
    """Of the clock, with the picture; the best of three, as the machine may have something else to do."""
    program = "import sys\nfrom metalearn.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    taken = []
    for _ in range(3):
        began = time.monotonic()
        words = [sys.executable, "-c", program, "compare", "runs"]
        subprocess.run(words, capture_output=True, check=True, cwd=large)
        taken.append(time.monotonic() - began)
    assert min(taken) < 2.0, taken
