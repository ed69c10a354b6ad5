"""The jobs of a sweep while they run: failures, signals, launchers, threads; and each equals the same run
alone.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.cli import main as cli
from metalearn.config.compose import compose
from metalearn.errors import DataError
from metalearn.sweep import jobs as sweep_jobs
from metalearn.sweep import launching, stopping
from tests.sweep.sweeping import Trainings, finish, rows, states, sweep

SMALL = [
    "data.num_classes=60",
    "data.query_shot=1",
    "eval.episodes=4",
    "eval.val_episodes=2",
    "trainer.outer_steps=2",
    "device=cpu",
]
SMALL += ["trainer.meta_batch_size=2", "model.channels=4", "device.threads=1", "algo=protonet"]


@pytest.mark.parametrize("failure", [DataError("no data"), RuntimeError("boom"), 1])
def test_a_failing_job_takes_no_other_with_it(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    trainings: Callable[..., Trainings],
    failure: Exception | int,
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


def test_a_signal_between_two_jobs_keeps_the_next_from_starting(
    tmp_path: Path, trainings: Callable[..., Trainings], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainings()
    usual = launching.record

    def signalled(folder: Path) -> None:
        usual(folder)
        if made.trained == [0]:
            made.trained.append(-1)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(launching, "record", signalled)
    assert sweep(tmp_path, "seed=0,1,2") == 143
    assert made.trained == [0, -1]
    assert states(tmp_path) == {"seed-0": "finished", "seed-1": "not started", "seed-2": "not started"}


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
    assert stopping.asked(tmp_path / "none", os.getppid()) == 0
    assert stopping.asked(tmp_path / "none", os.getpid()) == signal.SIGTERM


def test_the_first_signal_is_known_to_all_also_on_a_full_disk(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        stopping.leave_mark(tmp_path / ".stop-1", signal.SIGUSR1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    stopping.leave_mark(tmp_path / ".stop-1", signal.SIGTERM)
    assert stopping.marked(tmp_path / ".stop-1") == signal.SIGUSR1
    assert stopping.marked(tmp_path / ".stop-12") == 0
    stopping.remove_mark(tmp_path / ".stop-1")
    assert stopping.marked(tmp_path / ".stop-1") == 0


def test_a_launcher_that_loses_its_processes_is_given_the_jobs_that_never_began(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    trainings: Callable[..., Trainings],
    monkeypatch: pytest.MonkeyPatch,
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


def test_no_more_processes_than_jobs() -> None:
    from omegaconf import OmegaConf

    cores = len(os.sched_getaffinity(0))
    for wanted, num_jobs, given in [
        (8, 3, 3),
        (2, 3, 2),
        (-1, 1000, -1),
        (-1, 1, 1 if cores > 1 else -1),
        (None, 3, None),
    ]:
        launcher = OmegaConf.create({"n_jobs": wanted})
        launching.leave_none_idle(launcher, num_jobs)
        assert launcher.n_jobs == given


def test_a_job_elsewhere_computes_with_as_many_threads_as_alone(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("metalearn.build.device.default_threads", lambda: 7)
    jobs = [sweep_jobs.Job(1, [], [], compose([]), tmp_path)]
    run_job = launching.with_threads(launching.RunJob(jobs, 1, tmp_path, tmp_path, False))
    launching.prepare(run_job.threads)
    assert asked == [7]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "each job computes with 7 threads, as it would alone; jobs side by side are faster with "
            "device.threads=1",
        )
    ]


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
    assert {**yaml.safe_load((alone / "config.yaml").read_text()), "run_dir": None} == {
        **saved,
        "run_dir": None,
    }


def timeless(path: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("time_")}
        for line in path.read_text().splitlines()
    ]
