"""Weights & Biases and MLflow, each with its own package, offline; skipped where the package is absent."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.build.objects import try_logger
from metalearn.cli import main as cli
from metalearn.errors import ConfigError
from metalearn.loggers.guard import read_lines
from metalearn.loggers.mlflow import quietly
from tests.reliability import harness
from tests.reliability.harness import KILLED, QUICK, TINY, assert_same_end, finish, resume, struck, train

Point = tuple[str, int, float]
BOTH = pytest.mark.parametrize("logger", ["wandb", "mlflow"])


def package(logger: str) -> Any:
    return pytest.importorskip(logger, reason=f"{logger} is not installed")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder and the working folder of a person who has used neither package before."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder


def records(run_dir: Path) -> list[Any]:
    """What the one offline run in a folder holds, in W&B's own messages. Its package has no reader of its
    file any more: blocks of 32 KiB with records of a checksum, a length and a kind, as in LevelDB's log.
    """
    proto = importlib.import_module("wandb.proto.wandb_internal_pb2")
    [path] = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    data, place, whole, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            found.append(proto.Record.FromString(whole))
            whole = b""
    return found


def items(entries: Any) -> dict[str, Any]:
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def client(uri: str) -> Any:
    with quietly():
        return importlib.import_module("mlflow").MlflowClient(uri)


def mlflow_run(run_dir: Path, uri: str | None = None) -> tuple[Any, Any]:
    known = client(uri or f"sqlite:///{run_dir / 'mlflow' / 'mlflow.db'}")
    return known, known.get_run(json.loads((run_dir / "mlflow.json").read_text())["run_id"])


def points(logger: str, run_dir: Path, uri: str | None = None) -> list[Point]:
    """Every point that a run shows."""
    if logger == "wandb":
        rows = [items(record.history.item) for record in records(run_dir) if record.HasField("history")]
        return sorted(
            (name, row["step"], value) for row in rows for name, value in row.items() if "/" in name
        )
    known, run = mlflow_run(run_dir, uri)
    history = [
        metric for name in run.data.metrics for metric in known.get_metric_history(run.info.run_id, name)
    ]
    return sorted((metric.key, metric.step, metric.value) for metric in history)


def expected(run_dir: Path) -> list[Point]:
    return sorted(
        (f"{line.split}/{name}", line.step, value)
        for line in read_lines(run_dir / "metrics.jsonl")
        for name, value in line.values.items()
        if value is not None
    )


def identity(logger: str, run_dir: Path) -> str:
    return (run_dir / {"wandb": "wandb_id", "mlflow": "mlflow.json"}[logger]).read_text()


def warnings(run_dir: Path) -> list[str]:
    return [
        line for line in (run_dir / "train.log").read_text().splitlines() if " warning: the logger " in line
    ]


@BOTH
def test_every_point_is_shown_once_under_one_id_however_often_a_run_is_killed_and_prolonged(
    logger: str, cache: Path, reference: Path, tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    package(logger)
    run_dir = tmp_path / "runs" / "run"
    cfg = harness.configuration(cache, *QUICK, f"logger={logger}")
    assert finish(train(cfg, run_dir), "step:end@5") == KILLED
    first = identity(logger, run_dir)
    assert finish(resume(run_dir), "end:before_results") == KILLED
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)
    assert points(logger, run_dir) == expected(run_dir)
    assert finish(resume(run_dir, "trainer.outer_steps=8")) == 0
    assert points(logger, run_dir) == expected(run_dir)
    assert {"train/loss", "train/time_step", "val/accuracy", "val/episodes", "test/accuracy_ci95"} <= {
        tag for tag, _, _ in points(logger, run_dir)
    }
    assert identity(logger, run_dir) == first
    assert warnings(run_dir) == []
    assert capfd.readouterr().err == ""
    assert [path for path in run_dir.rglob("*") if path.is_symlink()] == []
    assert list(run_dir.parent.iterdir()) == [run_dir]
    assert list(home.iterdir()) == []


@BOTH
def test_each_job_of_a_sweep_is_a_run_with_its_configuration_and_its_end(
    logger: str, cache: Path, tmp_path: Path, home: Path
) -> None:
    package(logger)
    words = [*TINY, *QUICK, f"data.cache_dir={cache}", f"logger={logger}"]
    work = lambda: cli.main(["train", "-m", "sweep=first", "seed=0,1", *words])  # noqa: E731
    assert finish(work) == 0
    jobs = sorted((home / "outputs" / "sweeps" / "first").glob("seed-*"))
    assert len({identity(logger, job) for job in jobs}) == 2
    for seed, job in enumerate(jobs):
        result = next(value for name, _, value in expected(job) if name == "test/accuracy")
        if logger == "wandb":
            found = records(job)
            [run] = [record.run for record in found if record.HasField("run")]
            assert (run.display_name, run.run_group, run.project) == (job.name, "first", "metalearn")
            assert items(run.config.update)["seed"] == seed
            assert items(run.config.update)["data.way"] == 3
            shown = [record.summary.update for record in found if record.HasField("summary")]
            summary = {name: value for update in shown for name, value in items(update).items()}
            assert summary["test/accuracy"] == result
            assert [record.exit.exit_code for record in found if record.HasField("exit")] == [0]
        else:
            _, run = mlflow_run(job)
            assert (run.info.run_name, run.data.tags["sweep"]) == (job.name, "first")
            assert run.data.params["seed"] == str(seed)
            assert run.data.params["data.way"] == "3"
            assert run.data.metrics["test/accuracy"] == result
            assert run.info.status == "FINISHED"


@BOTH
def test_a_stopped_run_is_saved_and_ends_with_the_code_of_the_signal(
    logger: str, cache: Path, reference: Path, tmp_path: Path, home: Path
) -> None:
    package(logger)
    run_dir = tmp_path / "run"
    cfg = harness.configuration(cache, *QUICK, f"logger={logger}")
    work = struck(train(cfg, run_dir), lambda: os.kill(os.getpid(), signal.SIGTERM), step=4)
    assert finish(work) == 143
    assert harness.status(run_dir)["status"] == "preempted"
    if logger == "mlflow":
        assert mlflow_run(run_dir)[1].info.status == "KILLED"
    else:
        assert [record.exit.exit_code for record in records(run_dir) if record.HasField("exit")] == [143]
    assert finish(resume(run_dir, "logger=none")) == 0
    assert_same_end(run_dir, reference)


@BOTH
def test_what_python_and_torch_draw_and_how_they_end_is_left_alone(
    logger: str, reference: Path, tmp_path: Path, home: Path, cache: Path
) -> None:
    package(logger)

    def states() -> list[Any]:
        drawn = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
        return [*drawn, sys.exit, sys.excepthook, *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))]

    def work() -> int:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_bytes((reference / "config.yaml").read_bytes())
        before = states()
        told, problem = try_logger(harness.configuration(cache, f"logger={logger}"))
        told.open(tmp_path / "run", read_lines(reference / "metrics.jsonl"))
        between = states()
        told.close()
        return 0 if (problem, between, states()) == (None, before, before) else 1

    assert finish(work) == 0


def test_wandb_that_dies_costs_one_warning(
    cache: Path, reference: Path, tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    package("wandb")
    run_dir = tmp_path / "run"

    def kill() -> None:
        me = os.getpid()
        for path in Path("/proc").glob("[0-9]*/stat"):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == me:
                os.kill(int(path.parent.name), signal.SIGKILL)

    work = struck(train(harness.configuration(cache, *QUICK, "logger=wandb"), run_dir), kill, step=2)
    assert finish(work) == 0
    [warning] = warnings(run_dir)
    assert "the logger metalearn.loggers.wandb.WeightsAndBiases failed " in warning
    assert_same_end(run_dir, reference)


def test_wandb_online_without_a_key_is_refused_before_training(cache: Path, home: Path) -> None:
    package("wandb")
    with pytest.raises(ConfigError, match="logger.mode=online needs a key of W&B; call wandb login once"):
        try_logger(harness.configuration(cache, "logger=wandb", "logger.mode=online"))


def test_wandb_that_is_disabled_leaves_nothing(cache: Path, tmp_path: Path, home: Path) -> None:
    package("wandb")
    cfg = harness.configuration(cache, *QUICK, "logger=wandb", "logger.mode=disabled")
    assert finish(train(cfg, tmp_path / "run")) == 0
    assert list((tmp_path / "run").glob("wandb*")) == []


def test_mlflow_gathers_runs_in_one_folder_that_is_named_from_theirs(
    cache: Path, tmp_path: Path, home: Path
) -> None:
    package("mlflow")
    for seed in (0, 1):
        words = [*QUICK, f"seed={seed}", "logger=mlflow", "logger.tracking_uri=../mlflow"]
        assert finish(train(harness.configuration(cache, *words), tmp_path / str(seed))) == 0
    known = client(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    experiment = known.get_experiment_by_name("metalearn").experiment_id
    assert sorted(run.info.run_name for run in known.search_runs([experiment])) == ["0", "1"]


def test_mlflow_at_an_address_shows_a_resumed_run_once(cache: Path, tmp_path: Path, home: Path) -> None:
    package("mlflow")
    uri, run_dir = f"sqlite:///{tmp_path / 'server.db'}", tmp_path / "run"
    cfg = harness.configuration(cache, *QUICK, "logger=mlflow", f"logger.tracking_uri={uri}")
    assert finish(train(cfg, run_dir), "step:end@5") == KILLED
    assert finish(resume(run_dir)) == 0
    assert points("mlflow", run_dir, uri) == expected(run_dir)
    known, run = mlflow_run(run_dir, uri)
    assert [found.info.run_id for found in known.search_runs([run.info.experiment_id])] == [run.info.run_id]


def test_mlflow_gets_what_is_too_long_for_it_cut(cache: Path, tmp_path: Path, home: Path) -> None:
    package("mlflow")
    cfg = harness.configuration(cache, *QUICK, "logger=mlflow", f"logger.name={'n' * 7000}")
    assert finish(train(cfg, tmp_path / "run")) == 0
    assert mlflow_run(tmp_path / "run")[1].data.params["logger.name"] == "n" * 6000
    assert warnings(tmp_path / "run") == []
