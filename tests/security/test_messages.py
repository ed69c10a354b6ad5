"""What is printed may hold a stranger's words: names of files, keys and values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metalearn.cli import main as cli

STEERING = "\x1b]0;title\x07\x1b[2Jname\x9b31m\u202egnp\x08"


@pytest.mark.parametrize(
    "words",
    [
        [f"a{STEERING}=1"],
        [f"run_dir={STEERING}", "data.way=-1"],
        ["--config-dir", STEERING],
        [f"algo={STEERING}"],
    ],
)
def test_no_name_can_steer_the_terminal(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *words, "seed=x"]) == 2
    shown, complaint = capsys.readouterr()
    assert complaint
    assert all(letter.isprintable() or letter == "\n" for letter in shown + complaint)


def test_nor_can_the_files_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text(json.dumps({"status": STEERING}))
    assert cli.main(["ls", "runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "title" in shown
    assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_what_people_write_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["train", "algo=日本語é±…"])
    assert "algo=日本語é±…" in capsys.readouterr().err
