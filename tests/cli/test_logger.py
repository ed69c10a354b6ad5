"""The group `logger` as a person meets it on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from metalearn.cli import completion
from metalearn.cli import main as cli
from metalearn.config.compose import compose
from metalearn.sweep import jobs
from tests.reliability.harness import QUICK, TINY

NAMES = ["mlflow", "none", "tensorboard", "wandb"]


def sentence(logger: str) -> str:
    return (
        f"logger={logger} needs a package that is not installed; install it with: pip install "
        f"'metalearn-runner[{logger}]'"
    )


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)


def test_the_group_is_listed_shown_and_completed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls", "logger"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in (head, *rows)] == ["logger", *NAMES]
    assert cli.main(["show", "tensorboard"]) == 0
    assert "_target_: metalearn.loggers.tensorboard.TensorBoard\n" in capsys.readouterr().out
    line = "metalearn train logger="
    assert completion.complete(line, len(line), ("train",)) == [f"logger={name}" for name in NAMES]


def test_a_misspelt_one_gets_the_closest_match(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "logger=tensorbord"]) == 2
    assert (
        "logger=tensorbord does not exist; did you mean logger=tensorboard? choices: mlflow, "
        "none, tensorboard, wandb" in capsys.readouterr().err
    )


@pytest.mark.parametrize("logger", ["tensorboard", "wandb", "mlflow"])
def test_without_the_package_nothing_begins(
    logger: str,
    no_packages: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TINY, *QUICK, "data.cache_dir=cache"]
    assert cli.main(["train", *words, f"logger={logger}"]) == 2
    assert f"error: {sentence(logger)}\n" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
    assert cli.main(["train", *words, "run_dir=run"]) == 0
    assert cli.main(["resume", "run", f"logger={logger}"]) == 0
    assert (
        "run is finished; nothing to do; a logger hears of a run only while it trains\n"
        in capsys.readouterr().out
    )
    (tmp_path / "run" / "status.json").write_text(json.dumps({"status": "preempted"}))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert cli.main(["resume", "run", f"logger={logger}"]) == 2
    assert f"error: {sentence(logger)}\n" in capsys.readouterr().err
    assert {
        path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file() and path.name != ".lock"
    } == {path: content for path, content in before.items() if path.name != ".lock"}


def test_a_class_that_is_no_logger_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conf" / "logger").mkdir(parents=True)
    (tmp_path / "conf" / "logger" / "mine.yaml").write_text("_target_: metalearn.models.mlp.MLP\n")
    words = [
        "--config-dir",
        str(tmp_path / "conf"),
        "data=sinusoid",
        "logger=mine",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert cli.main(["train", *words]) == 2
    assert (
        "logger._target_=metalearn.models.mlp.MLP is not a class that derives from metalearn.loggers.Logger"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_a_job_of_a_sweep_is_the_one_that_it_was_before_there_were_loggers() -> None:
    cfg = compose(["seed=1"])
    older = {key: value for key, value in cfg.items() if key != "logger"}
    assert jobs.identity(cfg) == jobs.identity(older)
