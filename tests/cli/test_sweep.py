"""Sweeps: everything is checked before job 0, a failing job takes no other with it, a job equals the run alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn import cli, run, sweep
from metalearn.errors import DataError

SMALL = ["data.num_classes=60", "data.query_shot=1", "eval.episodes=4", "eval.val_episodes=2", "trainer.outer_steps=2", "device=cpu"]
SMALL += ["trainer.meta_batch_size=2", "model.channels=4", "device.threads=1", "algo=protonet"]


def finish(cfg: dict[str, Any], overrides: list[str], run_dir: Path, code: int = 0) -> int:
    """What run.train leaves behind, without the training."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(cfg))
    (run_dir / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (run_dir / "status.json").write_text(json.dumps({"status": "finished" if code == 0 else "failed", "exit_code": code}))
    return code


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_combination_is_checked_before_the_first_job(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("a job ran"))
    code = cli.main(["train", "-m", "algo=maml,protnet", "seed=0,-1", "data.wy=3", f"run_dir={tmp_path}/sweep"])
    assert code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: data.wy=3: data.wy is not a key; did you mean data.way?",
        "error: seed=-1 must be at least 0 (jobs 1, 3 of 4, counted from 0)",
        "error: algo=protnet does not exist; did you mean algo=protonet? "
        "choices: baseline, maml, pixel_nn, protonet, reptile (jobs 2, 3 of 4, counted from 0)",
    ]
    assert not (tmp_path / "sweep").exists()


def test_what_the_data_cannot_give_is_found_before_the_first_job(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("a job ran"))
    assert cli.main(["train", "-m", "data.way=5,500", f"run_dir={tmp_path}/sweep"]) == 2
    assert "data.way=500" in (complaint := capsys.readouterr().err)
    assert "(job 1 of 2, counted from 0)" in complaint


@pytest.mark.parametrize("failure", [DataError("no data"), RuntimeError("boom"), 1])
def test_a_failing_job_takes_no_other_with_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception | int
) -> None:
    def train(cfg: dict[str, Any], overrides: list[str], run_dir: Path) -> int:
        if cfg["seed"] != 1:
            return finish(cfg, overrides, run_dir)
        if isinstance(failure, int):
            return finish(cfg, overrides, run_dir, failure)
        raise failure

    monkeypatch.setattr(run, "train", train)
    folder = tmp_path / "it's"
    assert cli.main(["train", "-m", "seed=0,1,2", f'run_dir="{folder}"']) == 1
    shown = capsys.readouterr()
    assert [row["status"] for row in rows(folder)] == ["finished", "failed", "finished"]
    assert [row["overrides"] for row in rows(folder)] == ["seed=0", "seed=1", "seed=2"]
    assert "job 1 (2 of 3): seed=1" in shown.out
    assert "Traceback" not in shown.out + shown.err
    if isinstance(failure, Exception):
        assert str(failure) in (folder / "1" / "train.log").read_text()


def test_an_interrupted_job_ends_the_sweep_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "train", lambda cfg, overrides, run_dir: finish(cfg, overrides, run_dir, 130 if cfg["seed"] else 0))
    assert cli.main(["train", "-m", "seed=0,1,2", f"run_dir={tmp_path}/sweep"]) == 130
    assert [row["job"] for row in rows(tmp_path / "sweep")] == ["0", "1"]


def test_a_folder_that_is_not_empty_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "sweep.csv").touch()
    assert cli.main(["train", "-m", "seed=0,1", f"run_dir={tmp_path}"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: run_dir={tmp_path} is not empty; a sweep begins in a folder of its own, choose another run_dir\n"
    )


def test_without_a_folder_the_sweep_goes_under_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "train", finish)
    assert cli.main(["train", "-m", "seed=0,1"]) == 0
    [folder] = (tmp_path / "outputs" / "sweeps").iterdir()
    assert [row["folder"] for row in rows(folder)] == [f"outputs/sweeps/{folder.name}/{job}" for job in (0, 1)]


def test_a_job_equals_the_same_run_alone_byte_for_byte(tmp_path: Path) -> None:
    words = [*SMALL, f"data.cache_dir={tmp_path / 'cache'}"]
    assert cli.main(["train", "-m", "seed=0,1", *words, f"run_dir={tmp_path}/sweep"]) == 0
    assert cli.main(["train", "seed=1", *words, f"run_dir={tmp_path}/alone"]) == 0
    job, alone = tmp_path / "sweep" / "1", tmp_path / "alone"
    for name in ("results.json", "eval_test.csv"):
        assert (job / name).read_bytes() == (alone / name).read_bytes()
    assert timeless(job / "metrics.jsonl") == timeless(alone / "metrics.jsonl")
    assert (job / "results.json").read_bytes() != (tmp_path / "sweep" / "0" / "results.json").read_bytes()
    saved = yaml.safe_load((job / "config.yaml").read_text())
    assert {**yaml.safe_load((alone / "config.yaml").read_text()), "run_dir": None} == {**saved, "run_dir": None}


def timeless(path: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("time_")} for line in path.read_text().splitlines()
    ]


def test_a_job_without_data_is_named_before_any_job_runs(tmp_path: Path) -> None:
    jobs = [["data=sinusoid"], ["data=image_folder", f"data.root={tmp_path}/nowhere"]]
    with pytest.raises(DataError, match=r"nowhere.* \(job 1 of 2, counted from 0\)$"):
        sweep.machine_check(jobs, None, tmp_path / "sweep")


def test_a_stopped_sweep_names_the_commands_for_the_jobs_that_never_started(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train", lambda cfg, overrides, run_dir: finish(cfg, overrides, run_dir, 130 if cfg["seed"] else 0))
    folder = tmp_path / "sweep"
    assert cli.main(["train", "-m", "data=sinusoid", "seed=0,1,2", f"run_dir={folder}"]) == 130
    ends = capsys.readouterr().out.splitlines()[-2:]
    assert ends == ["1 of 3 jobs never started; run them with:", f"  metalearn train data=sinusoid seed=2 run_dir={folder}/2"]
    assert cli.main(["resume", str(folder)]) == 2
    assert capsys.readouterr().err == f"error: {folder} is a sweep of several runs; name one of them: {folder}/1\n"
