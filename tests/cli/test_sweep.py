"""Sweeps: all is checked before the first job, jobs are known by their configuration, and only what is left is done."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn import cli, config, run
from metalearn.errors import ConfigError, DataError
from metalearn.library import Library
from metalearn.sweep import jobs as sweep_jobs
from metalearn.sweep import launching, stopping, take_folder

SMALL = ["data.num_classes=60", "data.query_shot=1", "eval.episodes=4", "eval.val_episodes=2", "trainer.outer_steps=2", "device=cpu"]
SMALL += ["trainer.meta_batch_size=2", "model.channels=4", "device.threads=1", "algo=protonet"]


def finish(cfg: dict[str, Any], overrides: list[str], run_dir: Path, code: int = 0, status: str | None = None) -> int:
    """What run.train leaves behind, without the training."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(cfg))
    (run_dir / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (run_dir / "status.json").write_text(json.dumps({"status": status or ("failed" if code else "finished"), "exit_code": code}))
    return code


class Trainings:
    """Stands in for run.train and run.resume, and remembers what was asked. ends: exit code or exception by seed."""

    def __init__(self, ends: dict[int, int | Exception] | None = None) -> None:
        self.ends = ends or {}
        self.trained: list[int] = []
        self.resumed: list[tuple[str, list[str]]] = []

    def train(self, cfg: dict[str, Any], overrides: list[str], run_dir: Path) -> int:
        config.refuse_existing_run(dict(cfg, run_dir=run_dir))
        self.trained.append(cfg["seed"])
        end = self.ends.get(cfg["seed"], 0)
        if isinstance(end, Exception):
            raise end
        return finish(cfg, overrides, run_dir, end, "preempted" if end in (130, 143) else None)

    def resume(self, run_dir: Path, overrides: list[str]) -> int:
        self.resumed.append((run_dir.name.rpartition("_")[0], overrides))
        return finish(config.read_saved(run_dir), yaml.safe_load((run_dir / "overrides.yaml").read_text()), run_dir)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainings]:
    def make(ends: dict[int, int | Exception] | None = None) -> Trainings:
        made = Trainings(ends)
        monkeypatch.setattr(run, "train", made.train)
        monkeypatch.setattr(run, "resume", made.resume)
        return made

    return make


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def states(folder: Path) -> dict[str, str]:
    """What sweep.csv says of each job, by the readable part of its name."""
    return {row["job"].rpartition("_")[0]: row["status"] for row in rows(folder)}


def sweep(folder: Path, *words: str) -> int:
    return cli.main(["train", "-m", "data=sinusoid", *words, f"run_dir={folder}"])


def test_a_sweep_expands_to_its_combinations_in_order() -> None:
    jobs, swept = sweep_jobs.expand(["algo=maml,protonet", "trainer.outer_steps=3", "seed=range(0,2)"], None)
    assert swept == {"algo", "seed"}
    assert jobs == [
        ["algo=maml", "trainer.outer_steps=3", "seed=0"],
        ["algo=maml", "trainer.outer_steps=3", "seed=1"],
        ["algo=protonet", "trainer.outer_steps=3", "seed=0"],
        ["algo=protonet", "trainer.outer_steps=3", "seed=1"],
    ]


def test_every_combination_is_checked_before_the_first_job(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("a job ran"))
    code = cli.main(["train", "-m", "algo=maml,protnet", "seed=0,-1", "data.wy=3", f"run_dir={tmp_path}/sweep"])
    assert code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: data.wy=3: data.wy is not a key; did you mean data.way?",
        "error: seed=-1 must be at least 0 (jobs 2, 4 of 4)",
        "error: algo=protnet does not exist; did you mean algo=protonet? "
        "choices: baseline, maml, pixel_nn, protonet, reptile (jobs 3, 4 of 4)",
    ]
    assert not (tmp_path / "sweep").exists()


def test_what_the_data_cannot_give_is_found_before_the_first_job(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("a job ran"))
    assert cli.main(["train", "-m", "data.way=5,500", f"run_dir={tmp_path}/sweep"]) == 2
    assert "data.way=500" in (complaint := capsys.readouterr().err)
    assert "(job 2 of 2)" in complaint
    assert not (tmp_path / "sweep").exists()


def test_a_job_without_data_is_named_before_any_job_runs(tmp_path: Path) -> None:
    words = [["data=sinusoid"], ["data=image_folder", f"data.root={tmp_path}/nowhere"]]
    jobs = [sweep_jobs.Job(n, job, job, config.compose(job), tmp_path / str(n)) for n, job in enumerate(words, 4)]
    with pytest.raises(DataError, match=r"nowhere.* \(job 5 of 7\)$"):
        sweep_jobs.machine_check(jobs, 7)


@pytest.mark.parametrize("failure", [DataError("no data"), RuntimeError("boom"), 1])
def test_a_failing_job_takes_no_other_with_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings], failure: Exception | int
) -> None:
    made = trainings({1: failure})
    folder = tmp_path / "it's"
    assert cli.main(["train", "-m", "data=sinusoid", "seed=0,1,2", f'run_dir="{folder}"']) == 1
    shown = capsys.readouterr()
    assert made.trained == [0, 1, 2]
    assert states(folder) == {"seed-0": "finished", "seed-1": "failed", "seed-2": "finished"}
    assert [row["overrides"] for row in rows(folder)] == [f"data=sinusoid seed={seed}" for seed in (0, 1, 2)]
    assert "\njob 2 of 3: seed=1\n" in shown.out
    assert "Traceback" not in shown.out + shown.err
    if isinstance(failure, Exception):
        reason = "no data" if isinstance(failure, DataError) else "RuntimeError: boom"
        assert rows(folder)[1]["reason"] == reason
        assert f"failed: {rows(folder)[1]['folder']}: {reason}" in shown.out


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


def test_a_retried_job_that_had_begun_goes_on_where_it_stood(tmp_path: Path, trainings: Callable[..., Trainings]) -> None:
    trainings({1: 1})
    assert sweep(tmp_path, "seed=0,1", "trusted=[mine]") == 1
    made = trainings()
    assert sweep(tmp_path, "seed=0,1", "trusted=[mine]", "--retry-failed") == 0
    assert (made.trained, made.resumed) == ([], [("seed-1", ["trusted=[mine]"])])


def test_a_job_is_known_by_its_configuration_not_by_the_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    trainings()
    assert sweep(tmp_path, "seed=0,1") == 0
    made = trainings()
    assert sweep(tmp_path, "algo=maml,reptile", "seed=1", "trainer.patience=null") == 0
    assert made.trained == [1]  # reptile; maml with seed=1 was there
    assert sorted(states(tmp_path)) == ["reptile", "seed-0", "seed-1"]
    assert f"1 jobs of other commands are in {tmp_path} too; they stay as they are" in capsys.readouterr().out


def test_everything_that_numbers_follow_from_makes_another_job() -> None:
    base = config.compose(["seed=1"])
    same = ["run_dir=elsewhere", "data.cache_dir=elsewhere", "trainer.dry_run=true", "trusted=[mine]", "experiment=null"]
    other = ["seed=2", "trainer.outer_steps=3", "eval.episodes=7", "device.threads=1", "device.plan=loop", "data.seed=5", "optimizer.lr=1"]
    assert {sweep_jobs.identity(config.compose(["seed=1", word])) for word in same} == {sweep_jobs.identity(base)}
    assert len({sweep_jobs.identity(config.compose(["seed=1", word])) for word in other} - {sweep_jobs.identity(base)}) == len(other)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["algo=maml", "seed=0"], "maml_seed-0"),
        (["data.way=5", "algo.inner_lr=0.01"], "way-5_inner_lr-0.01"),
        (["seed=3", "data.seed=4"], "seed-3_data.seed-4"),
        (["optimizer.schedule.name=cosine"], "schedule.name-cosine"),
        (["data.rotations=[train,val]", "seed=-1"], "rotations-train-val_seed--1"),
        (["data.root='/my data/../x y'"], "root-my-data-..-x-y"),
        (["data.root=/" + 90 * "long"], "root-" + 13 * "long" + "lon"),
        ([], "job"),
    ],
)
def test_the_name_of_a_job_is_readable_and_safe_as_a_file_name(words: list[str], name: str) -> None:
    assert sweep_jobs.readable(words) == name


def test_a_single_job_is_named_after_all_of_its_words(tmp_path: Path, trainings: Callable[..., Trainings]) -> None:
    trainings()
    assert sweep(tmp_path, "seed=7") == 0
    assert list(states(tmp_path)) == ["sinusoid_seed-7"]


def test_combinations_with_one_configuration_are_one_job(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    made = trainings()
    assert sweep(tmp_path, "algo.inner_lr=0.1,1e-1,0.2") == 0
    assert len(made.trained) == 2
    assert "1 combinations have the configuration of another one, and are one job with it" in capsys.readouterr().out


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
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings], monkeypatch: pytest.MonkeyPatch
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
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings], monkeypatch: pytest.MonkeyPatch
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


def test_a_signal_between_two_jobs_keeps_the_next_from_starting(
    tmp_path: Path, trainings: Callable[..., Trainings], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainings()
    usual = launching.record

    def signalled(folder: Path, say: Callable[[str], None]) -> None:
        usual(folder, say)
        if made.trained == [0]:
            made.trained.append(-1)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(launching, "record", signalled)
    assert sweep(tmp_path, "seed=0,1,2") == 143
    assert made.trained == [0, -1]
    assert states(tmp_path) == {"seed-0": "finished", "seed-1": "not started", "seed-2": "not started"}


def test_a_run_that_was_only_asked_for_may_begin(tmp_path: Path) -> None:
    for name in (".lock", "overrides.yaml", "config.yaml.tmp"):
        (tmp_path / name).touch()
    config.refuse_existing_run({"run_dir": tmp_path})
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match=r"is not empty \(it holds metrics.jsonl\)"):
        config.refuse_existing_run({"run_dir": tmp_path})


def test_a_sweep_has_a_name_a_folder_or_a_new_folder(tmp_path: Path) -> None:
    assert take_folder(["seed=0,1", "sweep=first"], None) == (["seed=0,1"], Path("outputs/sweeps/first"))
    assert take_folder(["sweep=5"], None)[1] == Path("outputs/sweeps/5")
    assert take_folder(["run_dir=here", "sweep=null"], None) == ([], Path("here"))
    assert take_folder(["hydra.sweep.dir='my sweep'"], None) == ([], Path("my sweep"))
    assert take_folder([], None)[1] != take_folder([], None)[1]
    assert take_folder([], None)[1].parent == Path("outputs/sweeps")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["sweep=a", "run_dir=b"], "sweep=a and run_dir=b both name the folder of the sweep; give one of them"),
        (["sweep=a,b"], "sweep=a,b: a sweep has one folder, with a folder per job in it; give one sweep"),
        (["run_dir=a,b"], "run_dir=a,b: a sweep has one folder, with a folder per job in it; give one run_dir"),
        (["sweep=../up"], "sweep=../up is not a name of letters, digits and . _ + -; for a folder elsewhere write run_dir=FOLDER"),
        (["sweep=.."], "sweep=.. is not a name of letters, digits and . _ + -; for a folder elsewhere write run_dir=FOLDER"),
        (["+sweep=a"], "+sweep=a: keys cannot be added, the YAML lists all of them; to set one, write sweep=a"),
        (
            ["hydra.sweep.subdir=x"],
            "hydra.sweep.subdir=x: metalearn itself expands a sweep and names the folders of its jobs; leave it out",
        ),
        (
            ["hydra.sweeper.params={}"],
            "hydra.sweeper.params={}: metalearn itself expands a sweep and names the folders of its jobs; leave it out",
        ),
        (["hydra/sweeper=basic"], "hydra/sweeper=basic: metalearn itself expands a sweep and names the folders of its jobs; leave it out"),
        (["--cfg", "job"], "--cfg prints one configuration and --multirun asks for several; leave one of them out"),
    ],
)
def test_what_a_sweep_cannot_be_asked_is_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("a job ran"))
    assert cli.main(["train", "-m", "seed=0,1", *words]) == 2
    assert capsys.readouterr().err == f"error: {complaint}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["sweep=a"], "sweep=a names a sweep of several runs; add -m to start one"),
        (["--retry-failed"], "--retry-failed is for sweeps; add -m, or continue one run with: metalearn resume RUN_DIR"),
        (["swep=a"], "swep=a: swep is not a key; did you mean sweep?"),
    ],
)
def test_a_single_run_is_no_sweep(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *words]) == 2
    assert capsys.readouterr().err == f"error: {complaint}\n"


def test_the_name_of_a_sweep_stands_in_no_yaml_and_no_run(tmp_path: Path) -> None:
    assert "sweep" not in config.compose([])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsweep: mine\n")
    with pytest.raises(ConfigError, match="^sweep=mine stands in a YAML; it counts only from the command line$"):
        config.compose(["experiment=mine"], str(tmp_path))


def test_the_folder_of_something_else_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    made = trainings()
    (tmp_path / "thesis.tex").touch()
    assert sweep(tmp_path, "seed=0,1") == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} is not empty and no sweep (it holds thesis.tex); "
        "a sweep begins in a folder of its own, choose another sweep=NAME or run_dir=FOLDER\n"
    )
    finish({}, [], tmp_path / "run")
    assert sweep(tmp_path / "run", "seed=0,1") == 2
    assert f"{tmp_path}/run holds a run; a sweep begins in a folder of its own" in capsys.readouterr().err
    assert made.trained == []


def test_a_sweep_whose_csv_is_gone_is_still_one(tmp_path: Path, trainings: Callable[..., Trainings]) -> None:
    trainings()
    assert sweep(tmp_path, "seed=0,1") == 0
    (tmp_path / "sweep.csv").unlink()
    made = trainings()
    assert sweep(tmp_path, "seed=0,1,2") == 0
    assert made.trained == [2]


def test_rehearsals_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "train", lambda cfg, overrides, run_dir: 0)
    assert sweep(tmp_path / "sweep", "seed=0,1", "trainer.dry_run=true") == 0
    assert not (tmp_path / "sweep").exists()


def test_a_launcher_that_loses_its_processes_is_given_the_jobs_that_never_began(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainings()
    usual, times = launching.launch_once, []

    def fragile(run_job: launching.RunJob, own: Sequence[str], config_dir: str | None) -> list[int]:
        times.append(len(run_job.jobs))
        if len(times) == 1:
            finish(run_job.jobs[0].cfg, run_job.jobs[0].words, run_job.jobs[0].folder, status="running")
            raise RuntimeError("a worker was killed\nand more")
        return usual(run_job, own, config_dir)

    monkeypatch.setattr(launching, "launch_once", fragile)
    assert sweep(tmp_path, "seed=0,1,2") == 1
    assert (times, made.trained) == ([3, 2], [1, 2])
    assert states(tmp_path) == {"seed-0": "killed", "seed-1": "finished", "seed-2": "finished"}
    assert "error: the launcher gave up: RuntimeError: a worker was killed\n" in capsys.readouterr().out


def test_a_launcher_that_cannot_begin_is_not_asked_for_ever(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> list[int]:
        raise ModuleNotFoundError("No module named 'cloudpickle'")

    monkeypatch.setattr(launching, "launch_once", broken)
    assert sweep(tmp_path, "seed=0,1") == 1
    assert capsys.readouterr().out.count("the launcher gave up") == 1
    assert set(states(tmp_path).values()) == {"not started"}


def test_a_disk_that_is_full_for_sweep_csv_stops_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    made = trainings()
    (tmp_path / "sweep.csv").mkdir(parents=True)
    assert sweep(tmp_path, "seed=0,1") == 0
    assert made.trained == [0, 1]
    assert f"warning: {tmp_path / 'sweep.csv'} cannot be written: Is a directory" in capsys.readouterr().out


def test_joblib_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Library, "options", lambda self, group: ["basic"])
    [override] = Library().parse(["hydra/launcher=joblib"])
    assert config.judge_choice(override, Library()) == (
        "hydra/launcher=joblib needs a plugin that is not installed; install it with: pip install 'metalearn-runner[joblib]'",
        None,
    )


def test_no_more_processes_than_jobs() -> None:
    from omegaconf import OmegaConf

    cores = len(os.sched_getaffinity(0))
    for wanted, num_jobs, given in [(8, 3, 3), (2, 3, 2), (-1, 1000, -1), (-1, 1, 1 if cores > 1 else -1), (None, 3, None)]:
        launcher = OmegaConf.create({"n_jobs": wanted})
        launching.leave_none_idle(launcher, num_jobs)
        assert launcher.n_jobs == given


def test_a_job_elsewhere_computes_with_as_many_threads_as_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("metalearn.build.default_threads", lambda: 7)
    jobs = [sweep_jobs.Job(1, [], [], config.compose([]), tmp_path)]
    run_job = launching.with_threads(launching.RunJob(jobs, 1, tmp_path, tmp_path, print, False))
    launching.prepare(run_job.threads)
    assert asked == [7]
    assert capsys.readouterr().out == (
        "warning: each job computes with 7 threads, as it would alone; jobs side by side are faster with device.threads=1\n"
    )


def test_a_second_signal_ends_a_sweep_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(stopping.os, "_exit", left.append)
    before = signal.getsignal(signal.SIGINT)
    (tmp_path / "sweep").mkdir()
    with stopping.Stops(tmp_path / "sweep") as stops:
        signal.raise_signal(signal.SIGTERM)
        assert (stops.code, left) == (143, [])
        assert stopping.asked(stops.mark, None) == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
    assert (stops.code, left) == (143, [130])
    assert signal.getsignal(signal.SIGINT) == before
    assert not (tmp_path / "sweep").exists()


def test_the_end_of_a_sweeps_process_is_a_signal_to_its_jobs(tmp_path: Path) -> None:
    assert stopping.asked(tmp_path / "none", os.getppid()) is None
    assert stopping.asked(tmp_path / "none", os.getpid()) == signal.SIGTERM


def test_a_job_equals_the_same_run_alone_byte_for_byte(tmp_path: Path) -> None:
    words = [*SMALL, f"data.cache_dir={tmp_path / 'cache'}"]
    assert cli.main(["train", "-m", "seed=0,1", *words, f"run_dir={tmp_path}/sweep"]) == 0
    assert cli.main(["train", "seed=1", *words, f"run_dir={tmp_path}/alone"]) == 0
    [other], [job] = (list((tmp_path / "sweep").glob(f"seed-{seed}_*")) for seed in (0, 1))
    alone = tmp_path / "alone"
    for name in ("results.json", "eval_test.csv"):
        assert (job / name).read_bytes() == (alone / name).read_bytes()
    assert timeless(job / "metrics.jsonl") == timeless(alone / "metrics.jsonl")
    assert (job / "results.json").read_bytes() != (other / "results.json").read_bytes()
    saved = yaml.safe_load((job / "config.yaml").read_text())
    assert {**yaml.safe_load((alone / "config.yaml").read_text()), "run_dir": None} == {**saved, "run_dir": None}


def timeless(path: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("time_")} for line in path.read_text().splitlines()
    ]
