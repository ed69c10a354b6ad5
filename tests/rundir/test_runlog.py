from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn.config.compatibility import refuse_new_science, science
from metalearn.errors import CheckpointError, ConfigError
from metalearn.rundir.environment import differences
from metalearn.rundir.log import RunLog


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.metric(1, "train", {"loss": 0.5})
        offset = log.sync_metrics()
        log.metric(2, "train", {"loss": 0.4})
    with RunLog(tmp_path) as log:
        log.rewind_metrics(offset)
        log.metric(2, "train", {"loss": 0.3})
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        0.5,
        0.3,
    ]


def test_metrics_shorter_than_the_checkpoint_knows_are_refused(tmp_path: Path) -> None:
    with (
        RunLog(tmp_path) as log,
        pytest.raises(CheckpointError, match=r"metrics.jsonl has 0 bytes, the checkpoint knows 40"),
    ):
        log.rewind_metrics(40)


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write_json("results.json", {"mean": float("nan"), "values": [float("inf"), 1.0]})
    assert json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail) == {
        "mean": None,
        "values": [None, 1.0],
    }


def test_run_dir_that_is_a_file_or_below_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(
                ConfigError, match=r"cannot write to run_dir=.*choose a folder that can be written"
            ),
            RunLog(path),
        ):
            pass


def test_reader_who_leaves_does_not_stop_a_run(tmp_path: Path) -> None:
    code = (
        "import logging\nfrom pathlib import Path\nfrom metalearn.rundir.log import RunLog\n"
        f"with RunLog(Path({str(tmp_path)!r})) as log:\n    log.listen()\n"
        "    for i in range(20000):\n        logging.getLogger('metalearn').info(i)\n"
    )
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$0" | head -1; exit ${{PIPESTATUS[0]}}', code],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    assert len((tmp_path / "train.log").read_text().splitlines()) == 20000


def test_device_length_and_prose_may_change_and_nothing_else() -> None:
    old = {
        "seed": 0,
        "about": {"x": 1},
        "device": {"name": "cpu"},
        "trainer": {"outer_steps": 5, "log_every": 2},
        "algo": {"inner_lr": 0.1},
    }
    new = {
        "seed": 0,
        "about": {"x": 2},
        "device": {"name": "cuda"},
        "trainer": {"outer_steps": 9, "log_every": 2},
        "algo": {"inner_lr": 0.1},
    }
    refuse_new_science(science(old), science(new))
    with pytest.raises(ConfigError, match=r"algo.inner_lr: 0.1 -> 0.2"):
        refuse_new_science(science(old), science({**new, "algo": {"inner_lr": 0.2}}))


def test_other_software_or_hardware_is_named() -> None:
    then = {"versions": {"torch": "1"}, "hardware": {"cpu": "a"}}
    now = {"versions": {"torch": "2"}, "hardware": {"cpu": "a"}}
    assert differences(then, now) == ["torch was 1, is 2"]
