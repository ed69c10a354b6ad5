"""Who hears what the program says: the command line, or a run in its place; nobody hears anything twice."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn.cli import main as cli
from metalearn.config.compose import compose
from metalearn.errors import MetalearnError
from metalearn.run.train import train
from metalearn.rundir.messages import LOGGER, listening, overhearing, unheard

TINY = [
    "device=cpu",
    "device.threads=1",
    "algo=protonet",
    "data.num_classes=48",
    "data.num_drawings=6",
    "data.image_size=14",
    "data.way=3",
]
TINY += [
    "data.query_shot=2",
    "model.channels=4",
    "trainer.outer_steps=2",
    "trainer.meta_batch_size=2",
    "eval.val_episodes=2",
]
TINY += ["eval.episodes=4", "trainer.log_every=1"]
log = logging.getLogger("metalearn.data.something")


@pytest.fixture(autouse=True)
def left_as_it_was() -> None:
    assert (LOGGER.handlers, LOGGER.level, LOGGER.propagate) == ([], logging.NOTSET, True)
    yield
    assert (LOGGER.handlers, LOGGER.level, LOGGER.propagate) == ([], logging.NOTSET, True)


def test_what_the_data_say_reaches_screen_and_train_log_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    assert cli.main(["train", *TINY, f"data.cache_dir={cache}", f"run_dir={tmp_path}/run"]) == 0
    shown, complaint = capsys.readouterr()
    written = (tmp_path / "run" / "train.log").read_text()
    assert shown.count(f"preparing {cache}") == written.count(f"preparing {cache}") == 1
    assert complaint == ""
    [made] = cache.rglob("*.safetensors")
    made.write_bytes(b"damaged")
    assert cli.main(["eval", f"{tmp_path}/run"]) == 0
    assert capsys.readouterr().out.count(f"warning: {made} is corrupt (") == 1
    assert (tmp_path / "run" / "train.log").read_text() == written, "an evaluation is no part of the run"


def test_runs_of_one_process_do_not_hear_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.cache_dir={tmp_path}/cache"]
    assert cli.main(["train", "-m", *words, "seed=0,1", f"run_dir={tmp_path}/sweep"]) == 0
    shown = capsys.readouterr().out
    logs = {path.parent: path.read_text() for path in (tmp_path / "sweep").glob("*/train.log")}
    assert len(logs) == 2
    for folder, text in logs.items():
        assert text.count("run folder: ") == 1 and f"run folder: {folder}" in text
        assert "job 1 of 2" not in text
        assert shown.count(f"run folder: {folder}\n") == 1


def test_a_run_that_fails_no_longer_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_off(*parts: object) -> None:
        log.warning("about to break")
        raise MetalearnError("broken")

    monkeypatch.setattr("metalearn.engine.trainer.Trainer.train", break_off)
    with pytest.raises(MetalearnError):
        train(compose([*TINY, f"data.cache_dir={tmp_path}/cache"]), [], tmp_path / "run")
    log.warning("afterwards")
    text = (tmp_path / "run" / "train.log").read_text()
    assert " warning: about to break\n" in text
    assert "afterwards" not in text
    assert "afterwards" not in capsys.readouterr().out


def test_the_innermost_listener_hears_alone_and_only_as_long_as_it_lasts() -> None:
    outer: list[str] = []
    inner: list[str] = []
    with listening(outer.append):
        log.info("a 100% %s")
        with contextlib.suppress(ZeroDivisionError), listening(inner.append, level=logging.WARNING):
            log.info("too low")
            log.warning("b")
            log.error("c")
            raise ZeroDivisionError
        with unheard():
            log.warning("nobody hears this")
        with overhearing() as heard:
            log.info("d")
    assert (outer, inner, heard) == (["a 100% %s", "d"], ["warning: b", "error: c"], ["d"])


def test_used_from_python_the_ordinary_rules_of_logging_hold() -> None:
    code = (
        "import logging, metalearn; metalearn.load; log = logging.getLogger('metalearn.data.x'); "
        "log.info('a'); log.warning('b')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "b\n")
