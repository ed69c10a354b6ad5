"""A sweep that is given again: only what is left is done, and what is not its own is left alone."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from metalearn.cli import main as cli
from metalearn.errors import ConfigError, DataError
from metalearn.rundir.reader import refuse_existing_run
from metalearn.sweep import jobs as sweep_jobs
from metalearn.sweep import launching
from tests.sweep.sweeping import Trainings, finish, rows, states, sweep


def test_the_same_command_again_does_only_what_is_left(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    trainings({0: 0, 1: DataError("no data"), 2: 143})
    assert sweep(tmp_path, "seed=0,1,2") == 143
    before = {row["job"] for row in rows(tmp_path)}
    capsys.readouterr()
    made = trainings()
    assert sweep(tmp_path, "seed=0,1,2,3") == 1
    assert (made.trained, made.resumed) == ([3], [("seed-2", [])])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"4 jobs in {tmp_path}, 2 to run"
    assert said[1].endswith(": finished, skipped")
    assert said[2].endswith(": failed earlier, left alone (no data); --retry-failed runs it again")
    assert "job 3 of 4 goes on: seed=2" in said
    assert before < {row["job"] for row in rows(tmp_path)}
    made = trainings()
    assert sweep(tmp_path, "seed=0,1,2,3", "--retry-failed") == 0
    assert (made.trained, made.resumed) == ([1], [])
    assert set(states(tmp_path).values()) == {"finished"}


def test_a_retried_job_that_had_begun_goes_on_where_it_stood(
    tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    trainings({1: 1})
    assert sweep(tmp_path, "seed=0,1", "trusted=[mine]") == 1
    made = trainings()
    assert sweep(tmp_path, "seed=0,1", "trusted=[mine]", "--retry-failed") == 0
    assert (made.trained, made.resumed) == ([], [("seed-1", ["trusted=[mine]"])])


def test_a_finished_job_that_was_changed_by_hand_is_said_to_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    trainings()
    assert sweep(tmp_path, "seed=0,1") == 0
    path = next(tmp_path.glob("seed-1_*")) / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    saved["trainer"]["outer_steps"] = 4321
    saved["device"]["plan"] = "loop"  # as a measurement would choose
    path.write_text(yaml.safe_dump(saved))
    assert sweep(tmp_path, "seed=0,1") == 0
    said = capsys.readouterr().out
    assert "finished, skipped (but changed by hand since: trainer.outer_steps=4321)\n" in said
    path.write_text("not: a run")
    assert sweep(tmp_path, "seed=0,1") == 0
    assert "(but changed by hand since: config.yaml is damaged)" in capsys.readouterr().out


def test_a_job_that_somebody_else_runs_is_left_to_him(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    trainings({0: 130})
    assert sweep(tmp_path, "seed=0,1") == 130
    folder = next(tmp_path.glob("seed-0_*"))
    made = trainings()
    with (folder / ".lock").open("w") as lock:
        lock.write("4321\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweep(tmp_path, "seed=0,1") == 0
        assert f"{folder.name}: running in process 4321, skipped" in capsys.readouterr().out
        assert (rows(tmp_path)[0]["status"], rows(tmp_path)[0]["reason"]) == ("running", "process 4321")
    assert (made.trained, made.resumed) == ([1], [])


def test_a_job_that_another_process_takes_meanwhile_is_left_to_it(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    trainings: Callable[..., Trainings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainings()
    usual = launching.make_room

    def other_is_faster(job: sweep_jobs.Job) -> None:
        usual(job)
        finish(job.cfg, job.words, job.folder)
        (job.folder / "train.log").write_text("its own words\n")

    monkeypatch.setattr(launching, "make_room", other_is_faster)
    assert sweep(tmp_path, "seed=0") == 0
    assert states(tmp_path) == {"sinusoid_seed-0": "finished"}
    assert (next(tmp_path.glob("*_seed-0_*")) / "train.log").read_text() == "its own words\n"
    assert "error" not in capsys.readouterr().out


def test_a_stopped_sweep_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    trainings: Callable[..., Trainings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    trainings({1: 130})
    assert cli.main(["train", "-m", "data=sinusoid", "seed=0,1,2", "--config-dir", str(tmp_path)]) == 130
    [folder] = (tmp_path / "outputs" / "sweeps").iterdir()
    assert states(folder) == {"seed-0": "finished", "seed-1": "preempted", "seed-2": "not started"}
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "stopped with 2 of 3 jobs not finished; go on with:",
        f"  metalearn train -m --config-dir {tmp_path} data=sinusoid seed=0,1,2 sweep={folder.name}",
    ]
    trainings()
    assert cli.main(["train", "-m", "data=sinusoid", "seed=0,1,2", f"sweep={folder.name}"]) == 0
    assert set(states(folder).values()) == {"finished"}
    assert cli.main(["resume", str(folder)]) == 2
    assert f"error: {folder} is a sweep of several runs; name one of them: " in capsys.readouterr().err


def test_a_run_that_was_only_asked_for_may_begin(tmp_path: Path) -> None:
    for name in (".lock", "overrides.yaml", "config.yaml.tmp"):
        (tmp_path / name).touch()
    refuse_existing_run({"run_dir": tmp_path})
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match=r"is not empty \(it holds metrics.jsonl\)"):
        refuse_existing_run({"run_dir": tmp_path})


def test_a_sweep_whose_csv_is_gone_is_still_one(tmp_path: Path, trainings: Callable[..., Trainings]) -> None:
    trainings()
    assert sweep(tmp_path, "seed=0,1") == 0
    (tmp_path / "sweep.csv").unlink()
    made = trainings()
    assert sweep(tmp_path, "seed=0,1,2") == 0
    assert made.trained == [2]
