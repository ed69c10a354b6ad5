"""`metalearn report` over folders that are written by hand."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from metalearn.errors import ConfigError
from metalearn.report import html, paper, pictures
from metalearn.report.collection import Collection, collected
from metalearn.report.leaderboard import tables
from metalearn.report.methods import methods_of
from metalearn.report.rows import estimate
from metalearn.rundir import registry
from metalearn.rundir.registry import judgements
from tests.cli.conftest import answer
from tests.report import many_runs
from tests.report.judged import names_of, write_result

NASTY = "<script>alert('x')</script> & \"quotes\""
OLDER = (
    *("eval_test.csv", "predictions_test.safetensors", "worst_test.png", "breakdown_test.csv"),
    *("metrics.jsonl", "env.json", "overrides.yaml"),
)


def config(algo: str, seed: int, **changes: Any) -> dict[str, Any]:
    names = {"algo": algo, "data": "omniglot", "model": "conv4", "experiment": None}
    trainer = {"outer_steps": 1000, "meta_batch_size": 16}
    data = {"way": 5, "root": f"/somewhere/{seed}"}
    algo_ = {"inner_lr": 0.4, **changes}
    return {
        "choices": names,
        "algo": algo_,
        "data": data,
        "trainer": trainer,
        "seed": seed,
        "run_dir": str(seed),
    }


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of two methods, a wide protocol, an older run, and two without a result."""
    root = tmp_path_factory.mktemp("outputs")
    for seed in range(3):
        many_runs.write(root / f"good_{seed}", config("maml", seed), experiment="omniglot_maml")
        worse = config("maml", seed, inner_lr=0.01)
        many_runs.write(root / f"worse_{seed}", worse, shift=-0.1, experiment="omniglot_maml")
    many_runs.write(root / "wide", config("protonet", 0), algo="protonet", shift=-0.2, way=20)
    many_runs.write(root / "older", config("reptile", 0, note=NASTY), algo="reptile", way=10, drop=OLDER)
    results = json.loads((root / "older" / "results.json").read_text())
    for name in ("may_differ", "tasks_sha256", "reliability", "formats", "trains_on"):
        del results[name]
    del results["protocol"]["data_sha256"]
    (root / "older" / "results.json").write_text(json.dumps(results))
    for name, status in (("stopped", "preempted"), ("broken", "failed")):
        (root / name).mkdir()
        (root / name / "config.yaml").write_text(yaml.safe_dump(config("maml", 9)))
        (root / name / "status.json").write_text(json.dumps({"status": status}))
    (root / "broken" / "train.log").write_text(f"failed: {NASTY}\n")
    return root


@pytest.fixture(scope="module")
def page(outputs: Path) -> str:
    return html.report(collected([str(outputs)]))


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).split())


class Reader(HTMLParser):
    """Tags that are open, addresses that are asked for, and whether every tag is closed in turn."""

    VOID = ("meta", "img", "br", "line", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert not {"script", "link", "iframe"} & reader.tags
    assert len(reader.ids) == len(set(reader.ids))
    for address in reader.addresses:
        assert address.startswith("data:image/png;base64,") or address[1:] in reader.ids, address
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    assert "url(" not in re.sub(r"url\(#\w+\)", "", page)


def test_what_a_user_wrote_is_never_markup(page: str, outputs: Path) -> None:
    assert "alert(" in page
    assert "<script" not in page
    written = paper.report(collected([str(outputs)]), "md")
    assert "<script" not in written


def test_runs_that_differ_by_their_seed_are_one_row_and_unlike_protocols_no_table(outputs: Path) -> None:
    found = tables(collected([str(outputs)]).reported)
    assert [len(table.rows) for table in found] == [2, 1, 1]
    best, worse = found[0].rows
    assert (best.seeds, worse.seeds) == ([0, 1, 2], [0, 1, 2])
    assert (best.label, worse.label) == (
        "omniglot_maml algo.inner_lr=0.4",
        "omniglot_maml algo.inner_lr=0.01",
    )
    assert (best.budget, best.published) == (
        "1,000 × 16 tasks",
        ("98.7 %", "5-way 1-shot 98.7 % (Finn et al. 2017, table 1)"),
    )
    assert found[0].leads
    assert found[0].reason == (
        "omniglot_maml algo.inner_lr=0.4 is in bold: over seeds, where methods have any, and tasks (each "
        "other row shares 200 at least), the 95% interval of its difference leaves out zero."
    )


@pytest.mark.parametrize("seeds", [(1, 1), (3, 1), (2, 3)])
def test_trained_models_of_fewer_than_three_seeds_are_not_bold_however_far_apart(
    seeds: tuple[int, int], tmp_path: Path
) -> None:
    for number, count in enumerate(seeds):
        for seed in range(count):
            many_runs.write(
                tmp_path / f"{number}-{seed}", config("maml", seed, inner_lr=number), shift=-0.2 * number
            )
    [table] = tables(collected([str(tmp_path)]).reported)
    assert not table.leads
    assert re.fullmatch(
        r"No row is in bold: on the 200 tasks that both met, these trained models of maml algo.inner_lr=0 "
        r"and maml algo.inner_lr=1 differ by 19\.\d\d ± 0\.\d\d %; it takes 3 seeds of each to say more\.",
        table.reason,
    )
    assert r"\textbf" not in paper.report(collected([str(tmp_path)]), "tex")


def test_seeds_that_differ_as_much_as_methods_do_are_not_told_apart(tmp_path: Path) -> None:
    """The interval over tasks alone would leave out zero."""
    for number, shifts in enumerate(((0.0, 0.06, -0.06), (-0.02, 0.04, -0.08))):
        for seed, shift in enumerate(shifts):
            write_result(
                tmp_path / f"{number}-{seed}",
                {"accuracy": [0.5 + shift + 0.001 * (task % 3) for task in range(60)]},
                seed=seed,
                order=number,
            )
    [table] = tables(collected([str(tmp_path)]).reported)
    assert not table.leads
    assert "differ by 2.00 ± " in table.reason
    assert table.reason.endswith("no more than chance.")


def test_of_many_rivals_each_must_be_told_apart_by_a_corrected_p(tmp_path: Path) -> None:
    """Of methods that do not train: p is 0.03 of each, and twice that of two."""
    noise = [0.1 if task % 2 else -0.1 for task in range(50)]
    for number in range(3):
        for seed in range(2):
            scores = [
                0.5 - (0.0316 if number else 0.0) + (noise[task] if number else 0) for task in range(50)
            ]
            named = tmp_path / f"{number}-{seed}"
            write_result(named, {"accuracy": scores}, seed=seed, order=number, step=0)
    [table] = tables(collected([str(tmp_path)]).reported)
    assert not table.leads
    assert "p = 0.063 when corrected for 2 other rows" in table.reason
    for seed in range(2):
        shutil.rmtree(tmp_path / f"2-{seed}")
    [table] = tables(collected([str(tmp_path)]).reported)
    assert table.leads


def test_a_task_that_was_drawn_twice_counts_twice(tmp_path: Path) -> None:
    for number in range(2):
        for seed in range(2):
            scores = {"accuracy": [0.9 - 0.1 * number, 0.8 - 0.1 * number, 0.7 - 0.3 * number]}
            tasks = ["a" * 64, "b" * 64, "a" * 64]
            write_result(tmp_path / f"{number}-{seed}", scores, seed=seed, order=number, tasks=tasks)
    [table] = tables(collected([str(tmp_path)]).reported)
    assert "on the 3 tasks that both met" in table.reason
    assert "differ by 16.67 ±" in table.reason


def test_seeds_that_met_different_tasks_have_no_mean_per_task(tmp_path: Path) -> None:
    for number in range(2):
        for seed in range(3):
            tasks = names_of(20, seed if number else 0)
            scores = {"accuracy": [0.9 - 0.1 * number] * 20}
            write_result(tmp_path / f"{number}-{seed}", scores, seed=seed, order=number, tasks=tasks)
    [table] = tables(collected([str(tmp_path)]).reported)
    assert table.reason == (
        "No row is in bold: the seeds of maml algo.order=1 met different tasks, so that no task has a mean "
        "over seeds."
    )
    assert [row.estimate.over for row in table.rows if row.estimate] == ["tasks and seeds", "tasks"]


def test_a_row_that_leads_by_tasks_of_its_own_is_not_bold(tmp_path: Path) -> None:
    for number, values in enumerate(([0.1, 0.2, 0.3, 1.0, 1.0, 1.0], [0.4, 0.45, 0.6])):
        for seed in range(2):  # nothing to train
            named = tmp_path / f"{number}-{seed}"
            write_result(named, {"accuracy": values}, seed=seed, order=number, step=0)
    [table] = tables(collected([str(tmp_path)]).reported)
    assert (table.leads, table.reason) == (
        False,
        "No row is in bold: on the 3 tasks that both met, maml algo.order=1 is better than "
        "maml algo.order=0.",
    )


def test_seeds_of_a_single_task_have_no_interval_over_seeds(tmp_path: Path) -> None:
    for seed in range(3):
        write_result(tmp_path / str(seed), {"accuracy": [0.5 + seed / 10]}, seed=seed)
    [table] = tables(collected([str(tmp_path)]).reported)
    assert [row.estimate.over for row in table.rows if row.estimate] == ["tasks"]


def test_what_compare_calls_one_method_is_one_row_and_what_it_tells_apart_are_two(tmp_path: Path) -> None:
    def run(name: str, seed: int, env: dict[str, Any], **changes: Any) -> None:
        folder = write_result(tmp_path / name, {"accuracy": [0.5, 0.6]}, seed=seed, **changes)
        (folder / "env.json").write_text(json.dumps(env))

    place = {"locations": {"data.lines": ""}, "data_sha256": "ab"}
    run("a", 0, place, data={"lines": "/here"})
    run("b", 1, place, data={"lines": "/there"})
    run("c", 2, {**place, "data_sha256": "cd"}, data={"lines": "/there"})
    run("d", 3, place, data={"lines": "/there"}, protocol={"checkpoint": "last"})
    [table] = tables(collected([str(tmp_path)]).reported)
    assert {row.label: row.seeds for row in table.rows} == {
        "maml checkpoint=best data_sha256=ab": [0, 1],
        "maml checkpoint=best data_sha256=cd": [2],
        "maml checkpoint=last data_sha256=ab": [3],
    }
    assert len(methods_of(judgements([str(tmp_path)]))[0]) == 3


def test_how_many_tasks_were_needed_makes_no_table_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, reached in enumerate((True, False)):
        protocol = {"ci_target": 0.01, "ci_reached": reached, "tasks": 100 * seed}
        write_result(tmp_path / str(seed), {"accuracy": [0.5, 0.6 + seed / 10]}, seed=seed, protocol=protocol)
    [table] = tables(collected([str(tmp_path)]).reported)
    assert [row.seeds for row in table.rows] == [[0, 1]]
    assert len(answer(capsys, "ls", "runs", str(tmp_path), "--best")[1].splitlines()) == 3


def test_rows_whose_tasks_are_not_known_are_not_bold(tmp_path: Path) -> None:
    for number, drop in ((1, ("eval_test.csv",)), (2, ())):
        many_runs.write(
            tmp_path / str(number), config("maml", 0, inner_lr=number), shift=0.05 * number, drop=drop
        )
    [table] = tables(collected([str(tmp_path)]).reported)
    assert not table.leads
    assert "eval_test.csv cannot be read" in table.reason


def test_tables_of_one_heading_are_told_apart(tmp_path: Path) -> None:
    for number, transductive in enumerate((True, False)):
        path = many_runs.write(tmp_path / str(number), config("maml", 0)) / "results.json"
        results = json.loads(path.read_text())
        results["protocol"]["transductive"] = transductive
        path.write_text(json.dumps(results))
    found = [line for line in paper.report(collected([str(tmp_path)]), "md").splitlines() if line[0:1] == "#"]
    assert found == [
        "### omniglot, 5-way 1-shot: accuracy on test tasks (transductive)",
        "### omniglot, 5-way 1-shot: accuracy on test tasks (inductive)",
    ]


def test_a_repeated_seed_is_a_row_of_its_own(tmp_path: Path) -> None:
    for number in (1, 2):
        many_runs.write(tmp_path / str(number), config("maml", 0))
    [table] = tables(collected([str(tmp_path)]).reported)
    assert [row.seeds for row in table.rows] == [[0], [0]]


def test_an_interval_over_seeds_needs_three_and_is_wider_than_that_over_tasks() -> None:
    values = [{"mean": mean, "ci95": 0.01} for mean in (0.90, 0.92, 0.94)]
    # every seed is 0.02 above the one before on every task; tasks alternate by 0.25
    tasks = np.tile([-0.125, 0.125], 300)
    scores = np.array([mean + tasks for mean in (0.90, 0.92, 0.94)])
    two, three = estimate(values[:2], scores[:2]), estimate(values, scores)
    assert two is not None
    assert three is not None
    assert (two.over, round(two.ci95, 4)) == ("tasks", 0.01)
    assert three.over == "tasks and seeds"
    # by hand: variances 0.02**2 / 3 and 0.125**2 / 599, 2.85 degrees of freedom, t = 3.28
    assert three.ci95 == pytest.approx(0.0413, abs=4e-4)
    assert estimate([{"mean": None, "ci95": None}], None) is None


def test_the_page_names_protocol_curves_confusions_differences_and_provenance(page: str) -> None:
    text = text_of(page)
    for words in (
        "omniglot, 5-way 1-shot: accuracy on test tasks",
        "Each task tells 5 classes apart after 1 example of each, judged on 1 query per class.",
        "The queries of a task are seen together (transductive).",
        "Validation while training. Bands are 95% intervals over tasks, or the range over seeds.",
        "after each number of adaptation steps",
        "Calibration: accuracy over confidence",
        "- algo.inner_lr: 0.4 + algo.inner_lr: 0.01",
        "61490f18d2497052e3c93c60aa1290d79837362f",
        "metalearn train -m algo=maml data=omniglot seed=0,1,2",
        "The tasks on which it is worst, seed 0",
        "Classes most often confused",
        "alphabet 3",
    ):
        assert words in text, words
    assert re.search(r"Alphabet_\d/character\d\d Alphabet_\d/character\d\d \d+ of \d+ \d+ %", text)


def test_the_page_lists_what_has_no_result_and_what_an_older_run_lacks(page: str, outputs: Path) -> None:
    text = text_of(page)
    assert f"{outputs}/stopped preempted – go on with: metalearn resume {outputs}/stopped" in text
    assert f"{outputs}/broken failed" in text
    for name in (
        *("tasks_sha256", "may_differ", "reliability", "eval_test.csv", "predictions_test.safetensors"),
        *("env.json", "metrics.jsonl", "data_sha256 in its protocol"),
    ):
        assert f"{name} {outputs}/older" in text, name
    assert "neither overrides.yaml nor env.json was kept" in text


def test_a_table_for_a_paper_is_booktabs_with_the_best_in_bold(outputs: Path) -> None:
    written = paper.report(collected([str(outputs)]), "tex")
    assert written.count(r"\toprule") == written.count(r"\bottomrule") == 3
    [bold] = [line for line in written.splitlines() if r"\textbf" in line]
    assert bold.strip().startswith(r"omniglot\_maml algo.inner\_lr=0.4 & \textbf{")
    assert r"$\pm$" in bold
    assert r"\%" in bold


def test_a_program_gets_fractions(outputs: Path) -> None:
    rows = list(csv.DictReader(paper.report(collected([str(outputs)]), "csv").splitlines()))
    assert len(rows) == 4
    assert all(0 < float(row["mean"]) < 1 and float(row["ci95"]) > 0 for row in rows)
    assert [row["best"] for row in rows] == ["True", "False", "False", "False"]


def test_an_evaluation_is_a_row_with_its_own_command(tmp_path: Path) -> None:
    run = many_runs.write(tmp_path / "run", config("maml", 0))
    evaluation = many_runs.write(
        run / "evals" / "test_data.query_shot=3_data.way=20", config("maml", 0), way=20
    )
    (evaluation / "config.yaml").unlink()
    page = html.report(collected([str(tmp_path)]))
    assert f"metalearn eval {run} data.query_shot=3 data.way=20" in page
    assert len(collected([str(evaluation)]).reported) == 1


@pytest.mark.parametrize("content", [b"", b"\x00\x01", b"kind,name\nx"])
def test_damaged_files_cost_their_part_of_the_page_only(content: bytes, tmp_path: Path) -> None:
    run = many_runs.write(tmp_path / "run", config("maml", 0), tasks=20)
    for name in ("predictions_test.safetensors", "worst_test.png", "breakdown_test.csv", "metrics.jsonl"):
        (run / name).write_bytes(content)
    text = text_of(html.report(collected([str(run)])))
    assert "predictions_test.safetensors is damaged" in text
    assert "worst_test.png cannot be shown" in text
    assert "after each number of adaptation steps" in text


def damage(**changes: Any) -> Callable[[Path], None]:
    def done(run: Path) -> None:
        results = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps({**results, **changes}))

    return done


def deep(run: Path) -> None:
    """A protocol that is nested as deeply as JSON allows."""
    text = (run / "results.json").read_text()
    (run / "results.json").write_text(text.replace('"random"', "[" * 900 + "]" * 900))


@pytest.mark.parametrize(
    ("hurt", "reason"),
    [
        (damage(seed=None), "seed is no whole number"),
        (damage(seed=True), "seed is no whole number"),
        (damage(split="../../x"), "split is none of train, val, test"),
        (damage(split=["test"]), "split is none of train, val, test"),
        (damage(may_differ=3), "may_differ is no list of names"),
        (damage(may_differ=[3]), "may_differ is no list of names"),
        (damage(algo=["maml"]), "algo is no name"),
        (damage(metrics={"accuracy": {"mean": 10**400, "ci95": 0}}), "metrics.accuracy is no mean with ci95"),
        (damage(metrics=None), "metrics is not several keys"),
        (damage(formats={"accuracy": {"percent": True, "unit": "", "higher_is_better": 2}}), "is no format"),
        (deep, "protocol is nested too deeply"),
    ],
)
def test_a_damaged_run_is_listed_as_such_and_costs_no_other(
    hurt: Callable[[Path], None], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bad", "good"):
        many_runs.write(tmp_path / name, config("maml", 0), tasks=20, drop=OLDER[1:])
    hurt(tmp_path / "bad")
    found = paper.report(collected([str(tmp_path)]), "md")
    assert "| maml | " in found
    [line] = [line for line in found.splitlines() if line.startswith(f"| {tmp_path}/bad | damaged |")]
    assert reason in line
    assert answer(capsys, "ls", "runs", str(tmp_path), "--best", "--sort", "seed")[0] == 0


def test_a_row_that_cannot_be_made_is_listed_as_damaged_on_the_page(tmp_path: Path) -> None:
    for name in ("bad", "good"):
        many_runs.write(tmp_path / name, config("maml", 0), tasks=20, drop=OLDER)
    [bad, good] = collected([str(tmp_path)]).reported
    circle: list[Any] = []
    circle.append(circle)
    text = text_of(html.report(Collection([replace(bad, config={"algo": circle}), good], [])))
    assert f"{tmp_path}/bad damaged – RecursionError" in text
    assert "1 result of 1 run; 1 without a result" in text


def test_odd_names_of_metrics_and_of_keys_are_no_damage(tmp_path: Path) -> None:
    run = many_runs.write(tmp_path / "run", config("maml", 0), tasks=20)
    results = json.loads((run / "results.json").read_text())
    results["metrics"]["accuracy_step_best"] = results["metrics"]["accuracy"]
    (run / "results.json").write_text(json.dumps(results))
    odd = {1: 2, "a": [{2026: 1, "b": 2}], None: 3}
    (run / "config.yaml").write_text(
        yaml.safe_dump({**config("maml", 0), "data": {"odd": [odd], 7: 8}}, sort_keys=False)
    )
    (run / "metrics.jsonl").write_text('{"step": 1, "split": "train", "time_step": null}\n')
    collection = collected([str(tmp_path)])
    assert "Runs without a result" not in html.report(collection)
    assert [len(table.rows) for table in tables(collection.reported)] == [1]


@pytest.mark.parametrize("name", ["eval_test.csv", "worst_test.png", "predictions_test.safetensors"])
def test_no_file_is_read_through_a_link_out_of_its_run(name: str, tmp_path: Path) -> None:
    run = many_runs.write(tmp_path / "runs" / "run", config("maml", 0), tasks=20)
    os.replace(run / name, tmp_path / "secret")
    (run / name).symlink_to(tmp_path / "secret")
    [one] = collected([str(run)]).reported
    refusal = "it is a link that leads out of the folder of its run"
    if name == "eval_test.csv":
        assert isinstance(one.scores, str)
        assert refusal in one.scores
        assert "task_sha256 in eval_test.csv" in one.lacks
    else:
        assert refusal in text_of(html.report(collected([str(run)])))
    (run / name).unlink()
    os.replace(tmp_path / "secret", run / "evals.bin")
    (run / name).symlink_to("evals.bin")  # inside, as some file systems keep large files
    assert refusal not in text_of(html.report(collected([str(run)])))
    assert not isinstance(collected([str(run)]).reported[0].scores, str)


def test_a_pipe_is_no_table_and_a_file_beyond_measure_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = many_runs.write(tmp_path / "run", config("maml", 0), tasks=20)
    monkeypatch.setattr(registry, "MAX_TABLE", 100)
    monkeypatch.setattr(pictures, "MAX_PICTURE", 100)
    [one] = collected([str(run)]).reported
    assert "at most 100 are read" in str(one.scores)
    assert "worst_test.png cannot be shown: it has" in text_of(html.report(collected([str(run)])))
    for name in ("eval_test.csv", "worst_test.png", "breakdown_test.csv", "predictions_test.safetensors"):
        (run / name).unlink()
        os.mkfifo(run / name)
    [one] = collected([str(run)]).reported
    assert "it is not a file" in str(one.scores)
    assert "predictions_test.safetensors" in one.lacks
    assert "Row by row" in html.report(collected([str(run)]))


def test_a_folder_that_is_named_twice_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = many_runs.write(tmp_path / "a" / "run", config("maml", 0), tasks=20, drop=OLDER[1:])
    many_runs.write(run / "evals" / "test_data.way=20", config("maml", 0), way=20, tasks=20, drop=OLDER[1:])
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["a", "./b/../a", str(tmp_path / "a"), "a/run", "b/../a/run/evals/test_data.way=20"]
    assert len(collected(words).reported) == 2
    assert len(judgements([*words[:4]])) == 1


def test_a_grid_is_called_one_and_its_cells_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = many_runs.write(tmp_path / "run", config("maml", 0), tasks=20, drop=OLDER[1:])
    grid = run / "evals" / "grid_cells"
    grid.mkdir(parents=True)
    cells = [{"way": way, "folder": f"evals/test_data.way={way}"} for way in range(5)]
    (grid / "grid.json").write_text(json.dumps({"axes": {}, "cells": [*cells, {"reason": "no"}]}))
    named = "its 5 cells, which have a result each: " + ", ".join(
        f"{run}/evals/test_data.way={way}" for way in range(4)
    )
    assert answer(capsys, "compare", str(grid), str(run)) == (
        2,
        "",
        f"error: {grid} is a grid: name {named} and 1 more\n",
    )
    code, shown, _ = answer(capsys, "report", str(grid), "--format", "md")
    assert code == 0
    assert f"| {grid} | grid | – | {named} and 1 more |" in shown


class TestCommand:
    def test_it_writes_one_file_and_prints_tables(
        self,
        outputs: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, shown, _ = answer(capsys, "report", str(outputs))
        assert (code, [path.name for path in tmp_path.iterdir()]) == (0, ["report.html"])
        assert re.fullmatch(r"report\.html \(\d\.\d MB\)\n", shown)
        code, shown, _ = answer(capsys, "report", str(outputs / "wide"), "--format", "md")
        assert code == 0
        assert shown.startswith(
            "### omniglot, 20-way 1-shot: accuracy on test tasks\n\n| Method | accuracy ± 95% CI |"
        )

    def test_mistakes_have_a_sentence(
        self, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "empty").mkdir()
        for words, complaint in (
            ([f"{outputs}/no*"], f"{outputs}/no* matches nothing; list the runs with: metalearn ls runs"),
            (["nowhere"], "nowhere does not exist; list the runs with: metalearn ls runs"),
            ([f"{tmp_path}/empty"], f"{tmp_path}/empty holds no run; list the runs with: metalearn ls runs"),
            ([str(outputs), "--format", "htm"], "--format htm does not exist; did you mean html?"),
            (
                [str(outputs), "--output", str(tmp_path)],
                f"--output {tmp_path} is a folder; name a file, as in --output report.html",
            ),
            (
                [str(outputs), "--output", f"{tmp_path}/no/x.html"],
                f"--output {tmp_path}/no/x.html lies in {tmp_path}/no, which is no folder; name a file, "
                "as in --output report.html",
            ),
        ):
            assert answer(capsys, "report", *words) == (2, "", f"error: {complaint}\n")

    def test_recipes_make_a_table_and_no_page(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(
            "about: {figures: [{name: x | <b>, published: 3, unit: mse, eval: [data.shot=5]}]}\n"
        )
        code, shown, _ = answer(capsys, "report", str(recipe), "--format", "md")
        assert code == 0
        assert f"Made by `metalearn report {recipe} --format md`" in shown
        assert (
            "| `mine` | x \\| &lt;b> | 3 mse | not measured yet | `metalearn eval RUN_DIR data.shot=5` |"
            in shown
        )
        assert answer(capsys, "report", str(recipe)) == (
            2,
            "",
            f"error: {recipe} holds recipes, which make a table and no page; add --format md, tex or csv\n",
        )
        recipe.write_text("a: 1\n")
        assert answer(capsys, "report", str(recipe), "--format", "md") == (
            2,
            "",
            f"error: {recipe} is no recipe with about.figures; name a folder of runs or of recipes\n",
        )

    @pytest.mark.parametrize("name", ["overrides.yaml", "notes.yaml"])
    def test_a_folder_with_some_yaml_is_no_folder_of_recipes(
        self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        many_runs.write(tmp_path / "sweep" / "run", config("maml", 0), tasks=20)
        (tmp_path / "sweep" / "job").mkdir()
        for folder in ("", "job"):
            if folder or name == "notes.yaml":
                (tmp_path / "sweep" / folder / name).write_text("[algo=maml]\n")
        code, shown, _ = answer(capsys, "report", str(tmp_path / "sweep"), "--format", "md")
        assert code == 0
        assert "| maml |" in shown
        job = f"| {tmp_path}/sweep/job | not started | – |"
        assert (job in shown) == (name == "overrides.yaml")
        assert ("not started" in answer(capsys, "ls", "runs", str(tmp_path))[1]) == (name == "overrides.yaml")
        code, shown, complaint = answer(capsys, "report", str(tmp_path / "sweep" / "job"), "--format", "md")
        assert (code, "recipe" in shown + complaint) == ((0 if name == "overrides.yaml" else 2), False)


def test_neither_page_nor_list_needs_torch(outputs: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from metalearn.cli.main import main; "
        f"assert main(['report', {str(outputs)!r}, '--output', {str(tmp_path / 'x.html')!r}]) == 0; "
        f"assert main(['ls', 'runs', {str(outputs)!r}, 'algo.inner_lr=0.4']) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_word_that_names_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        collected([str(tmp_path / "no")])


@pytest.mark.slow
def test_a_hundred_runs_take_twenty_seconds_and_ten_megabytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import time

    many_runs.main(tmp_path / "outputs", 100, bare=False)
    for run in sorted((tmp_path / "outputs").glob("*/*"))[:20]:
        shutil.copytree(run, run / "evals" / "test_eval.episodes=600")
        assert (run / "metrics.jsonl").stat().st_size > 10_000
    start = time.perf_counter()
    assert answer(capsys, "report", f"{tmp_path}/outputs", "--output", f"{tmp_path}/x.html")[0] == 0
    assert time.perf_counter() - start < 20
    assert (tmp_path / "x.html").stat().st_size < 10e6


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed (apt install chromium)"
)
@pytest.mark.parametrize("width", [1280, 400])
def test_a_real_browser_shows_the_page_without_a_word_of_complaint(
    width: int, page: str, tmp_path: Path
) -> None:
    """And nothing but tables and figures, which scroll by themselves, is wider than the window."""
    probe = (
        "<script>document.title = document.documentElement.scrollWidth + ' ' + innerWidth + ' ' "
        "+ document.querySelectorAll('svg path').length</script></body>"
    )
    (tmp_path / "page.html").write_text(page.replace("</body>", probe), encoding="utf-8")
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    words += [f"--window-size={width},900", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run(
        ["chromium", *words, f"file://{tmp_path}/page.html"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    title = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert title is not None
    content, window, paths = map(int, title.groups())
    assert content <= window
    assert paths > 50
    assert "CONSOLE" not in done.stderr
