from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.cli.ls import runs
from metalearn.errors import DataError
from metalearn.report import tables
from metalearn.report.readme import about_blocks
from metalearn.sweep import table

Write = Callable[..., Path]


def test_closing_gives_percent_interval_and_task_count_of_every_metric(run_dir: Path) -> None:
    lines = [line.split() for line in tables.closing(run_dir).splitlines()]
    assert ["accuracy", "96.31", "±", "0.42", "%", "600"] in lines
    assert ["accuracy_inductive", "91.00", "±", "0.50", "%", "600"] in lines
    assert ["loss", "0.1234", "±", "0.0100", "600"] in lines


def test_closing_states_the_protocol_and_the_published_figure(run_dir: Path) -> None:
    text = tables.closing(run_dir)
    assert (
        "maml on omniglot · test tasks · 5-way 1-shot, 15 queries per class · transductive · checkpoint best "
        "(step 150) · seed 0" in text
    )
    assert (
        "published: 5-way 1-shot 98.7 % (Finn et al. 2017)\ndeviation: 3,500 steps instead of 60,000" in text
    )


def test_closing_puts_the_primary_metric_first_and_steps_in_order(run_dir: Path) -> None:
    names = [
        line.split()[0] for line in tables.closing(run_dir).splitlines() if " ± " in line and line[0] in "al"
    ]
    assert names == ["accuracy", "accuracy_inductive", "loss", *(f"accuracy_step_{k}" for k in (0, 1, 2, 10))]


def test_closing_splits_the_wall_time(run_dir: Path) -> None:
    assert "time: data 2.0 s · step 40.0 s · eval 12.0 s · save 0.0 s · together 54.0 s" in tables.closing(
        run_dir
    )


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


def test_an_algorithms_published_figure_stands_in_where_no_recipe_has_one(run_dir: Path) -> None:
    figure = {"value": 98.8, "unit": "% Omniglot 5-way 1-shot", "source": "table 1"}
    figure |= {"algo": "maml", "data": "omniglot", "way": 5, "shot": 1}
    config = {"algo": {"about": {"paper": "Snell 2017", "published": figure}}}
    results = json.loads((run_dir / "results.json").read_text())
    assert (
        tables.published_line(config, results)
        == "published: 98.8 % Omniglot 5-way 1-shot, table 1 (Snell 2017)"
    )
    assert tables.published_line(config, {**results, "data": "glyphs"}) == ""
    assert tables.published_line(config, {**results, "algo": "anil"}) == "", (
        "anil's YAML may have that of maml among its defaults"
    )
    assert tables.published_line(config, {**results, "protocol": {**results["protocol"], "shot": 5}}) == ""


@pytest.mark.parametrize(
    ("names", "sizes", "line"),
    [
        ({}, {}, "published: 5-way 1-shot 98.7 % (Finn et al. 2017)"),
        ({}, {"shot": 5}, "published: 5-way 5-shot 99.9 % (Finn et al. 2017)"),
        ({}, {"way": 20}, ""),
        ({"data": "glyphs"}, {}, ""),
        ({"algo": "protonet"}, {}, ""),  # experiment=omniglot_maml algo=protonet
        ({"experiment": None}, {}, ""),
    ],
)
def test_a_recipes_figures_stand_under_runs_of_their_own_protocol_only(
    names: dict[str, str], sizes: dict[str, int], line: str, run_dir: Path
) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    results = json.loads((run_dir / "results.json").read_text())
    config["choices"] |= names
    results |= {**names, "protocol": {**results["protocol"], **sizes}}
    assert tables.published_line(config, results).partition("\n")[0] == line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"metric": "accuracy"}, "published: 5-way 1-shot 98.7 % (Finn et al. 2017)"),
        ({"metric": "accuracy_inductive"}, ""),
        (
            {"published_protocol": {"outer_steps": 200, "transductive": True, "query_shot": 15}},
            "published: 5-way 1-shot 98.7 % (Finn et al. 2017)",
        ),
        (
            {"published_protocol": {"outer_steps": 60000, "transductive": False, "way": 5}},
            "published: 5-way 1-shot 98.7 %, other protocol: outer_steps 60000, transductive false "
            "(Finn et al. 2017)",
        ),
    ],
)
def test_a_published_figure_names_the_facts_in_which_it_is_of_another_protocol(
    changes: dict[str, Any], line: str, run_dir: Path
) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    results = json.loads((run_dir / "results.json").read_text())
    config["about"]["figures"][0] |= changes
    assert tables.published_line(config, results).partition("\n")[0] == line
    [*short] = [figure.short for figure in tables.published_figures(config, results)[0]]
    assert short == ([f"98.7 %{' (other protocol)' * ('other' in line)}"] if line else [])


def test_of_the_figures_of_a_recipe_the_nearest_protocol_stands_beside_a_result(run_dir: Path) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    results = json.loads((run_dir / "results.json").read_text())
    own = config["about"]["figures"][0]
    own["published_protocol"] = {"outer_steps": 60000, "transductive": True}
    config["about"]["figures"].append(
        {**own, "name": "alone", "published_protocol": {"outer_steps": 60000, "transductive": False}}
    )
    assert "alone" not in tables.published_line(config, results)
    results["protocol"]["transductive"] = False
    assert tables.published_line(config, results).startswith(
        "published: alone 98.7 %, other protocol: outer_steps 60000 ("
    )


def test_no_figure_in_a_yaml_of_ours_is_unverified_or_without_its_place() -> None:
    folder = Path(__file__).resolve().parents[2] / "conf"
    assert [
        path.name for path in folder.rglob("*.yaml") if "from memory" in path.read_text(encoding="utf-8")
    ] == []
    for group in ("algo", "experiment"):
        for name, about in about_blocks(folder, group):
            figures = [{**about, **figure} for figure in about.get("figures", []) if figure["published"]]
            for figure in [*figures, *([about["published"]] if about.get("published") else [])]:
                assert figure.keys() >= set(tables.PLACE), name


def test_a_result_that_is_not_finite_is_called_so(run_dir: Path) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    results["metrics"]["loss"] = {"mean": None, "ci95": None, "std": None}
    (run_dir / "results.json").write_text(json.dumps(results))
    assert "not finite" in tables.closing(run_dir)


def test_an_evaluation_is_shown_beside_the_run(write_run: Write, tmp_path: Path) -> None:
    run_dir, other = (
        write_run(tmp_path / "run"),
        write_run(tmp_path / "run" / "evals" / "20-way", accuracy=0.8),
    )
    lines = [line.split() for line in tables.beside(run_dir, other).splitlines()]
    assert ["accuracy", "80.00", "±", "0.42", "%", "96.31", "±", "0.42", "%"] in lines


def test_closing_without_results_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="metalearn resume"):
        tables.closing(tmp_path)


def sweep_of(write_run: Write, root: Path) -> Path:
    """Three finished jobs, and one each that failed, was preempted, was killed and was never begun."""
    for name, algo, seed, accuracy in [
        ("a", "maml", 0, 0.90),
        ("b_2", "maml", 1, 0.94),
        ("b_10", "protonet", 0, 0.97),
    ]:
        write_run(
            root / name,
            accuracy=accuracy,
            seed=seed,
            overrides=[f"algo={algo}", "data=glyphs", f"seed={seed}"],
        )
    for seed, status in enumerate(["failed", "preempted", "running", None], 1):
        folder = root / f"c_{seed}"
        folder.mkdir()
        (folder / "overrides.yaml").write_text(f"[algo=protonet, data=glyphs, seed={seed}]\n")
        if status is not None:
            (folder / "config.yaml").touch()
            (folder / "status.json").write_text(json.dumps({"status": status, "exit_code": 1}))
    (root / "c_1" / "train.log").write_text(
        "2026-11-22 01:02:03 failed: two\n2026-11-22 01:02:03 failed: the disk is full\n\n"
    )
    return root


def test_sweep_has_a_line_per_job_and_the_spread_over_seeds(write_run: Write, tmp_path: Path) -> None:
    text = table.sweep(sweep_of(write_run, tmp_path))
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("in all jobs: model=conv4 experiment=omniglot_maml data=glyphs\n\n")
    assert [Path(line[-1]).name for line in lines[4:11]] == ["a", "b_2", "b_10", "c_1", "c_2", "c_3", "c_4"]
    assert lines[4] == [
        "algo=maml",
        "seed=0",
        "finished",
        "accuracy",
        "90.00",
        "±",
        "0.42",
        "%",
        "0.9",
        str(tmp_path / "a"),
    ]
    assert lines[10] == ["algo=protonet", "seed=4", "not", "started", "0.0", str(tmp_path / "c_4")]
    assert f"\n\nfailed: {tmp_path / 'c_1'}: the disk is full\n\n" in text
    assert ["algo=maml", "2", "accuracy", "92.00", "%", "2.83", "%"] in lines
    assert "algo=protonet" not in text.split("standard deviation")[1]  # one seed has no spread


def test_sweep_csv_says_of_every_job_what_happened_to_it(write_run: Write, tmp_path: Path) -> None:
    rows = list(csv.DictReader(table.sweep_csv(sweep_of(write_run, tmp_path)).splitlines()))
    assert [row["status"] for row in rows] == ["finished"] * 3 + [
        "failed",
        "preempted",
        "killed",
        "not started",
    ]
    assert rows[1]["mean"] == "0.94"
    assert rows[3] | {"folder": ""} == {
        "job": "c_1",
        "overrides": "algo=protonet data=glyphs seed=1",
        "status": "failed",
        "primary": "",
        "mean": "",
        "ci95": "",
        "minutes": "0.00",
        "folder": "",
        "reason": "the disk is full",
        "algo": "",
        "data": "",
        "model": "",
        "experiment": "",
    }
    assert (rows[1]["algo"], rows[1]["experiment"]) == ("maml", "omniglot_maml")


def test_a_damaged_job_does_not_hide_the_others(write_run: Write, tmp_path: Path) -> None:
    folder = sweep_of(write_run, tmp_path)
    (folder / "a" / "results.json").write_text("{")
    (folder / "b_2" / "overrides.yaml").write_text("{")
    (folder / "b_10" / "status.json").write_text("[]")
    rows = list(csv.DictReader(table.sweep_csv(folder).splitlines()))
    assert [row["status"] for row in rows[:4]] == ["unreadable", "unreadable", "killed", "failed"]
    assert (
        f"unreadable: {folder / 'a'}: {folder / 'a'}/results.json is not the result of a run"
        in table.sweep(folder)
    )
    (folder / "c_1" / "train.log").write_bytes(b"\x1b[2Jgone\xff\n")
    (folder / "c_4" / "overrides.yaml").write_text("seed=4")
    assert f"failed: {folder / 'c_1'}: ?[2Jgone\ufffd" in table.sweep(folder)
    assert f"unreadable: {folder / 'c_4'}: overrides.yaml is no list of words" in table.sweep(folder)


def with_formats(run_dir: Path, formats: object) -> Path:
    results = json.loads((run_dir / "results.json").read_text())
    (run_dir / "results.json").write_text(json.dumps({**results, "formats": formats}))
    return run_dir


def test_metrics_are_read_as_the_result_says_and_not_by_their_names(run_dir: Path) -> None:
    stars = {"percent": False, "higher_is_better": False, "unit": "stars"}
    with_formats(
        run_dir, {"accuracy": stars, "loss": {"percent": True, "higher_is_better": False, "unit": ""}}
    )
    lines = [line.split() for line in tables.closing(run_dir).splitlines()]
    assert ["accuracy", "0.9631", "±", "0.0042", "stars", "600"] in lines
    assert ["loss", "12.34", "±", "1.00", "%", "600"] in lines
    assert [
        "accuracy_inductive",
        "91.00",
        "±",
        "0.50",
        "%",
        "600",
    ] in lines  # undeclared, as in older results
    assert "accuracy 0.9631 ± 0.0042 stars" in runs(run_dir.parent)


def test_a_sweep_reads_its_metrics_as_the_results_say(write_run: Write, tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = write_run(tmp_path / str(seed), accuracy=0.5 + seed, overrides=[f"seed={seed}"])
        with_formats(folder, {"accuracy": {"percent": False, "higher_is_better": False, "unit": "stars"}})
    text = table.sweep(tmp_path)
    assert "accuracy 0.5000 ± 0.0042 stars" in text
    assert text.splitlines()[-1].split() == [
        "(defaults)",
        "2",
        "accuracy",
        "1.0000",
        "stars",
        "0.7071",
        "stars",
    ]


@pytest.mark.parametrize(
    "formats",
    [
        ["loss"],
        {"loss": 1},
        {"loss": {"percent": True}},
        {"loss": {"percent": 1, "unit": ""}},
        {"loss": None},
    ],
)
def test_formats_that_no_run_writes_are_refused(run_dir: Path, formats: object) -> None:
    with pytest.raises(
        DataError, match=r"results.json is not the result of a run \(.*\); restore it from a backup"
    ):
        tables.closing(with_formats(run_dir, formats))


def test_the_metric_that_chose_the_checkpoint_is_named_where_it_is_not_the_primary_one(run_dir: Path) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    for monitor, words in (
        ("loss", "checkpoint best by loss (step 150)"),
        ("accuracy", "checkpoint best (step 150)"),
    ):
        results["protocol"]["monitor"] = monitor
        assert words in tables.protocol_line(results)
