from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from metalearn.analysis import tables

Write = Callable[..., Path]


def test_closing_gives_percent_interval_and_task_count_of_every_metric(run_dir: Path) -> None:
    lines = [line.split() for line in tables.closing(run_dir).splitlines()]
    assert ["accuracy", "96.31", "±", "0.42", "%", "600"] in lines
    assert ["accuracy_inductive", "91.00", "±", "0.50", "%", "600"] in lines
    assert ["loss", "0.1234", "±", "0.0100", "600"] in lines


def test_closing_states_the_protocol_and_the_published_figure(run_dir: Path) -> None:
    text = tables.closing(run_dir)
    assert "test tasks · 5-way 1-shot, 15 queries per class · transductive · checkpoint best (step 150) · seed 0" in text
    assert "published: 5-way 1-shot 98.7 % (Finn et al. 2017)\ndeviation: 3,500 steps instead of 60,000" in text


def test_closing_puts_the_primary_metric_first_and_steps_in_order(run_dir: Path) -> None:
    names = [line.split()[0] for line in tables.closing(run_dir).splitlines() if " ± " in line and line[0] in "al"]
    assert names == ["accuracy", "accuracy_inductive", "loss", *(f"accuracy_step_{k}" for k in (0, 1, 2, 10))]


def test_closing_splits_the_wall_time(run_dir: Path) -> None:
    assert "time: data 2.0 s · step 40.0 s · eval 12.0 s · save 0.0 s · together 54.0 s" in tables.closing(run_dir)


def test_closing_counts_in_minutes_from_one_minute_on(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 200, "split": "val", "time_save": 36.0}\n')
    assert "save 36.0 s · together 1.5 min" in tables.closing(run_dir)


def test_one_query_is_no_queries(run_dir: Path) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    results["protocol"]["query_shot"] = 1
    assert "5-way 1-shot, 1 query per class · " in tables.protocol_line(results)


def test_next_commands_name_the_folder_and_the_trusted_packages(write_run: Write, tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "my run", trusted=["mine"])
    text = tables.closing(run_dir)
    assert f"  metalearn eval '{run_dir}' eval.episodes=2000 'trusted=[mine]'" in text
    assert f"  metalearn resume '{run_dir}' trainer.outer_steps=400 'trusted=[mine]'" in text


def test_an_algorithms_published_figure_stands_in_where_no_recipe_has_one() -> None:
    about = {"paper": "Snell 2017", "published": {"value": 98.8, "unit": "% Omniglot 5-way 1-shot", "source": "table 1"}}
    assert (
        tables.published_line({"about": None, "algo": {"about": about}})
        == "published: under its own protocol 98.8 % Omniglot 5-way 1-shot, table 1 (Snell 2017)"
    )


def test_a_result_that_is_not_finite_is_called_so(run_dir: Path) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    results["metrics"]["loss"] = {"mean": None, "ci95": None, "std": None}
    (run_dir / "results.json").write_text(json.dumps(results))
    assert "not finite" in tables.closing(run_dir)


def test_an_evaluation_is_shown_beside_the_run(write_run: Write, tmp_path: Path) -> None:
    run_dir, other = write_run(tmp_path / "run"), write_run(tmp_path / "run" / "evals" / "20-way", accuracy=0.8)
    lines = [line.split() for line in tables.beside(run_dir, other).splitlines()]
    assert ["accuracy", "80.00", "±", "0.42", "%", "96.31", "±", "0.42", "%"] in lines


def test_closing_without_results_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="metalearn resume"):
        tables.closing(tmp_path)


def sweep_of(write_run: Write, root: Path) -> Path:
    for number, (algo, seed, accuracy) in enumerate([("maml", 0, 0.90), ("maml", 1, 0.94), ("protonet", 0, 0.97)]):
        write_run(root / str(number), accuracy=accuracy, seed=seed, overrides=[f"algo={algo}", "data=glyphs", f"seed={seed}"])
    failed = root / "10"
    failed.mkdir()
    (failed / "overrides.yaml").write_text("[algo=protonet, data=glyphs, seed=1]\n")
    (failed / "status.json").write_text(json.dumps({"status": "failed", "exit_code": 1}))
    return root


def test_sweep_has_a_line_per_job_and_the_spread_over_seeds(write_run: Write, tmp_path: Path) -> None:
    text = tables.sweep(sweep_of(write_run, tmp_path))
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("in all jobs: data=glyphs\n\n")
    assert [line[0] for line in lines[4:8]] == ["0", "1", "2", "10"]
    assert lines[4] == ["0", "algo=maml", "seed=0", "accuracy", "90.00", "±", "0.42", "%", "0.9", str(tmp_path / "0")]
    assert "failed" in lines[7]
    assert ["algo=maml", "2", "accuracy", "92.00", "%", "2.83", "%"] in lines
    assert "algo=protonet" not in text.split("standard deviation")[1]  # one seed has no spread


def test_sweep_csv_keeps_fractions_and_leaves_failed_results_empty(write_run: Write, tmp_path: Path) -> None:
    rows = list(csv.DictReader(tables.sweep_csv(sweep_of(write_run, tmp_path)).splitlines()))
    assert [row["status"] for row in rows] == ["finished", "finished", "finished", "failed"]
    assert rows[1]["mean"] == "0.94"
    assert rows[3] | {"folder": ""} == {
        "job": "10",
        "overrides": "algo=protonet data=glyphs seed=1",
        "status": "failed",
        "primary": "",
        "mean": "",
        "ci95": "",
        "minutes": "0.00",
        "folder": "",
    }
