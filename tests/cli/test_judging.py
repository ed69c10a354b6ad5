"""One checkpoint judged in other ways: on locked tasks, of several seeds, until an interval is small, over a
grid.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from metalearn.cli import main as cli
from metalearn.run import pictures

SMALL = [
    *("algo=protonet", "model.norm_statistics=support", "model.channels=4", "device=cpu", "device.threads=1"),
    *("data=glyphs", "data.num_classes=60", "data.num_drawings=6", "data.image_size=14", "data.way=3"),
    *("data.query_shot=2", "trainer.outer_steps=2", "trainer.meta_batch_size=2", "eval.val_episodes=2"),
    "eval.episodes=12",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, threads = tmp_path_factory.mktemp("judging"), torch.get_num_threads()
    assert cli.main(["train", *SMALL, f"data.cache_dir={place / 'cache'}", f"run_dir={place / 'run'}"]) == 0
    torch.set_num_threads(threads)
    return place


def judge(place: Path, *words: str) -> dict[str, Any]:
    """The result of an evaluation that must succeed."""
    before = set((place / "run" / "evals").glob("*"))
    assert cli.main(["eval", str(place / "run"), *words]) == 0
    (folder,) = set((place / "run" / "evals").glob("*")) - before
    return {"folder": folder, **json.loads((folder / "results.json").read_text())}


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    code = cli.main(list(words))
    return code, capsys.readouterr().err


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_judged_on_its_own_locked_tasks_has_the_same_tasks_and_scores(place: Path) -> None:
    run, path = place / "run", place / "lock.jsonl"
    assert cli.main(["data", "lock", str(run), "--output", str(path)]) == 0
    own, found = json.loads((run / "results.json").read_text()), judge(place, f"eval.tasks={path}")
    assert found["tasks_sha256"] == own["tasks_sha256"]
    assert found["metrics"] == own["metrics"]
    assert found["protocol"]["tasks"] == "lock.jsonl"
    assert (run / "eval_test.csv").read_bytes() == (found["folder"] / "eval_test.csv").read_bytes()


def test_all_tasks_of_a_file_are_judged_however_many_are_asked_for(place: Path) -> None:
    path = place / "many.jsonl"
    assert cli.main(["data", "lock", str(place / "run"), "eval.episodes=31", "--output", str(path)]) == 0
    assert judge(place, f"eval.tasks={path}", "eval.episodes=5")["episodes"] == 31


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["data.way=2"], "data.way=2 beside eval.tasks="),
        (["eval.grid={way: [2]}"], "eval.grid beside eval.tasks"),
        (["eval.seeds=2"], "eval.seeds=2 would judge the same 12 tasks again and again"),
    ],
)
def test_what_means_nothing_beside_a_file_of_tasks_is_refused(
    words: list[str], problem: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "lock2.jsonl"
    assert cli.main(["data", "lock", str(place / "run"), "--output", str(path)]) == 0
    code, error = refusal(capsys, "eval", str(place / "run"), f"eval.tasks={path}", *words)
    assert code == 2
    assert problem in error


def test_the_same_name_with_other_tasks_is_another_evaluation(place: Path) -> None:
    path, words = place / "again.jsonl", ["data", "lock", str(place / "run")]
    assert cli.main([*words, "--output", str(path)]) == 0
    first = judge(place, f"eval.tasks={path}")
    assert cli.main([*words, "eval.seed=77", "--output", str(path)]) == 0
    assert judge(place, f"eval.tasks={path}")["tasks_sha256"] != first["tasks_sha256"]


def test_every_row_says_which_task_it_is_of(place: Path) -> None:
    rows = table(place / "run" / "eval_test.csv")
    assert list(rows[0])[:2] == ["task_id", "task_sha256"]
    assert len({row["task_sha256"] for row in rows}) == len(rows)


def locked(place: Path, split: str) -> Path:
    path = place / f"{split}.jsonl"
    words = [f"eval.split={split}", "eval.episodes=4", "--output", str(path)]
    assert cli.main(["data", "lock", str(place / "run"), *words]) == 0
    return path


def test_tasks_of_classes_that_were_trained_on_are_refused_by_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = locked(place, "train")
    code, error = refusal(capsys, "eval", str(place / "run"), f"eval.tasks={path}")
    assert code == 2
    assert "4 of the 4 tasks" in error
    assert "that this run was trained on" in error
    assert "0, 1, 2, 3; leave these lines out" in error


def test_anyway_judges_them_and_says_so_in_the_protocol(place: Path) -> None:
    protocol = judge(place, f"eval.tasks={locked(place, 'train')}", "--anyway")["protocol"]
    assert protocol["anyway"] is True
    assert protocol["seen_in"] == "train"


def test_a_run_that_would_be_judged_on_its_training_classes_does_not_begin(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, f"data.cache_dir={place / 'cache'}", f"run_dir={place / 'never'}"]
    code, error = refusal(capsys, "train", *words, f"eval.tasks={locked(place, 'train')}")
    assert code == 2
    assert "4 of the 4 tasks" in error
    assert not (place / "never" / "checkpoints").exists()


def of_ways(place: Path, *ways: int) -> Path:
    """A file of tasks of test classes, of so many ways each, with three queries."""
    lines = [json.loads(line) for line in locked(place, "test").read_text().splitlines()]
    rows = {row["class"]: row["drawing"] for line in lines for row in line["support"]}
    shown = [{"class": owner, "drawing": drawing} for owner, drawing in rows.items()]
    asked = [{**row, "drawing": row["drawing"] % 6 + 1} for row in shown]
    path = place / f"ways-{'-'.join(map(str, ways))}.jsonl"
    tasks = [{"support": shown[:way], "query": asked[: min(3, way)]} for way in ways]
    path.write_text("\n".join(map(json.dumps, tasks)), encoding="utf-8")
    return path


def test_a_method_that_is_bound_to_its_way_refuses_a_file_of_another_before_it_trains(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, bound = of_ways(place, 4, 3), place / "bound"
    words = [*SMALL[1:], "algo=maml", f"data.cache_dir={place / 'cache'}", f"run_dir={bound}"]
    refused = "the head has 3 outputs but the tasks have 4"
    code, error = refusal(capsys, "train", *words, f"eval.tasks={path}")
    assert (code, refused in error) == (2, True), error
    assert cli.main(["train", *words]) == 0
    code, error = refusal(capsys, "eval", str(bound), f"eval.tasks={path}")
    assert (code, refused in error) == (2, True), error


def test_a_method_that_takes_any_way_is_judged_on_that_of_the_file(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(place, f"eval.tasks={of_ways(place, 4, 4)}")["protocol"]["way"] == 4
    code, error = refusal(capsys, "eval", str(place / "run"), f"eval.tasks={of_ways(place, 4, 3)}")
    assert code == 2
    assert "takes tasks without padded rows only" in error


def test_a_run_is_not_resumed_into_a_grid(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = refusal(capsys, "resume", str(place / "run"), "eval.grid={way: [3]}")
    assert code == 2
    assert "judge the run when it has ended" in error


def test_seeds_are_judged_together_and_told_apart(place: Path) -> None:
    found = judge(place, "eval.seeds=3", "eval.episodes=5", "eval.seed=40")
    rows = table(found["folder"] / "eval_test.csv")
    assert [row["eval_seed"] for row in rows] == [*["40"] * 5, *["41"] * 5, *["42"] * 5]
    assert found["episodes"] == 15
    alone = judge(place, "eval.episodes=5", "eval.seed=41")
    assert found["by_eval_seed"]["41"]["mean"] == alone["metrics"]["accuracy"]["mean"]
    theirs = [row["task_sha256"] for row in table(alone["folder"] / "eval_test.csv")]
    assert [row["task_sha256"] for row in rows[5:10]] == theirs


def test_an_evaluation_ends_when_its_interval_is_small_enough_whatever_is_taken_at_once(place: Path) -> None:
    found = judge(place, "eval.ci_target=3", "eval.episodes=2000", "eval.predictions=false")
    protocol = found["protocol"]
    assert found["episodes"] in range(200, 2000, 100)
    assert found["metrics"]["accuracy"]["ci95"] <= 0.03
    assert (protocol["ci_target"], protocol["ci_reached"]) == (3.0, True)
    assert "after 200 tasks and every 100 more" in protocol["ci_rule"]
    other = judge(place, "eval.ci_target=3", "eval.episodes=2000", "eval.predictions=false", "eval.chunk=170")
    assert other["tasks_sha256"] == found["tasks_sha256"]
    assert other["metrics"] == found["metrics"]


def test_a_target_that_is_not_reached_is_said(place: Path) -> None:
    found = judge(place, "eval.ci_target=0.01", "eval.episodes=30")
    assert (found["episodes"], found["protocol"]["ci_reached"]) == (30, False)


def test_a_grid_judges_every_cell_and_says_why_one_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval.grid={way: [3,20], shot: [1,2]}", "eval.episodes=4"]
    assert cli.main(["eval", str(place / "run"), *words]) == 0
    shown = "".join(capsys.readouterr())
    (folder,) = (place / "run" / "evals").glob("grid_*")
    cells = json.loads((folder / "grid.json").read_text())["cells"]
    assert [(cell["way"], cell["shot"], "mean" in cell) for cell in cells] == [
        (3, 1, True),
        (3, 2, True),
        (20, 1, False),
        (20, 2, False),
    ]
    assert "data.way=20 but split 'test' of glyphs has 15 classes" in cells[2]["reason"]
    assert (folder / "grid.png").stat().st_size > 1000
    assert re.search(r"20 +refused +refused", shown)


@pytest.mark.parametrize(
    ("grid", "problem"),
    [
        ("{way: [40,50]}", "data.way=40: data.way=40 but split 'test' of glyphs has 15 classes"),
        ("{way: 5}", "expected one or two sizes of data with their values"),
        ("{way: [5], shot: [1], query_shot: [1]}", "expected one or two sizes"),
        (
            "{ways: [5]}",
            "eval.grid has no ways; choose one or two of way, shot, query_shot; did you mean way?",
        ),
    ],
)
def test_a_grid_without_a_cell_is_refused(
    grid: str, problem: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = refusal(capsys, "eval", str(place / "run"), f"eval.grid={grid}", "eval.episodes=4")
    assert code == 2
    assert problem in error


def test_a_run_itself_has_no_grid(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = refusal(capsys, "train", *SMALL, "eval.grid={way: [5]}")
    assert code == 2
    assert "judge the run when it has ended" in error


def test_predictions_name_the_classes_and_can_be_read_without_torch(place: Path) -> None:
    rows = load_file(place / "run" / "predictions_test.safetensors")
    assert {name: values.dtype.name for name, values in rows.items()} == {
        "task": "int32",
        "row": "int32",
        "classes": "int32",
        "label": "int64",
        "predicted": "int64",
        "probability": "float16",
    }
    scores = table(place / "run" / "eval_test.csv")
    for task in (0, 11):
        mine = rows["task"] == task
        right = (rows["predicted"][mine] == rows["label"][mine]).mean()
        assert right == pytest.approx(float(scores[task]["accuracy"]))
    assert rows["classes"].shape == (12, 3)
    assert rows["row"].min() >= 1  # drawings are numbered from 1


def test_a_breakdown_says_how_well_each_class_was_known(place: Path) -> None:
    rows = table(place / "run" / "breakdown_test.csv")
    assert {row["kind"] for row in rows} == {"class"}
    queries = sum(int(row["queries"]) for row in rows)
    assert queries == 12 * 3 * 2
    mean = sum(float(row["mean"]) * int(row["queries"]) for row in rows) / queries
    whole = json.loads((place / "run" / "results.json").read_text())["metrics"]["accuracy"]["mean"]
    assert mean == pytest.approx(whole)


def test_the_worst_tasks_are_drawn(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalearn.run.evaluate.draw_worst", pictures.draw_worst)
    assert (judge(place, "eval.seed=7")["folder"] / "worst_test.png").stat().st_size > 1000
