"""A run folder of a stranger: a configuration, tensors, facts and files that somebody else may have written.

Fault 16: a pickle in place of anything is refused with exit 4 (2 where no checkpoint is read), and its canary
never appears.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metalearn.cli import main as cli
from metalearn.rundir.checkpoint_files import METADATA, WEIGHTS_FILE
from tests.security.run_folders import TINY, checkpoints, codes, sign

pytestmark = pytest.mark.usefixtures("never_unexpected")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


class Bomb:
    """Unpickled, it makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def pickles(canary: Path) -> dict[str, bytes]:
    """The same bomb in every wrapping that some reader would open."""
    path = canary.with_name("bomb.pt")
    torch.save({"weights": Bomb(canary)}, path)
    zipped = path.read_bytes()
    torch.save({"weights": Bomb(canary)}, path, _use_new_zipfile_serialization=False)
    legacy = path.read_bytes()
    path.unlink()
    return {"plain": pickle.dumps(Bomb(canary)), "torch": zipped, "legacy torch": legacy}


@pytest.mark.parametrize("name", ["plain", "torch", "legacy torch"])
@pytest.mark.parametrize("place", [WEIGHTS_FILE, METADATA])
def test_fault_16_a_pickle_bomb_as_checkpoint_is_refused(
    run_dir: Path, canary: Path, name: str, place: str
) -> None:
    for folder in checkpoints(run_dir):
        (folder / place).write_bytes(pickles(canary)[name])
        sign(folder)
    assert codes(run_dir) == {"resume": 4, "eval": 4, "ls": 0, "load": 4}
    assert not canary.exists()


@pytest.mark.parametrize("name", ["plain", "torch"])
def test_fault_16_a_pickle_bomb_in_every_file_of_a_run_is_refused(
    run_dir: Path, canary: Path, name: str
) -> None:
    for path in [path for path in run_dir.rglob("*") if path.is_file()]:
        path.write_bytes(pickles(canary)[name])
    assert codes(run_dir) == {"resume": 2, "eval": 2, "ls": 0, "load": 2}
    assert not canary.exists()


@pytest.mark.parametrize("name", ["plain", "legacy torch"])
def test_fault_16_a_pickle_bomb_in_files_that_no_verb_needs_is_never_opened(
    run_dir: Path, canary: Path, name: str
) -> None:
    for place in (
        "overrides.yaml",
        "status.json",
        "env.json",
        "results.json",
        ".lock",
        "checkpoints/last",
        "checkpoints/best",
    ):
        (run_dir / place).write_bytes(pickles(canary)[name])
    assert codes(run_dir) == {"resume": 0, "eval": 0, "ls": 0, "load": 0}
    assert not canary.exists()


def test_fault_17_a_target_in_a_checkpoint_s_configuration_is_refused(
    run_dir: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is never built: it must equal the run's own, which the allow-list has judged."""
    for folder in checkpoints(run_dir):
        facts = json.loads((folder / METADATA).read_text())
        facts["config"] |= {"algo._target_": "os.system", "algo.command": f"touch {canary}"}
        (folder / METADATA).write_text(json.dumps(facts))
        sign(folder)
    assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 2
    assert "algo._target_: os.system -> metalearn.algorithms.maml.MAML" in capsys.readouterr().err
    saved = yaml.safe_load((run_dir / "config.yaml").read_text())
    saved["algo"] |= {"_target_": "os.system", "command": f"touch {canary}"}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(saved))
    assert codes(run_dir) == {"resume": 2, "eval": 2, "ls": 0, "load": 2}
    assert "algo._target_=os.system is outside the trusted packages" in capsys.readouterr().err
    assert not canary.exists()


class TestOtherFiles:
    @pytest.mark.parametrize(
        "text",
        ["", "[]", "null", "{", "[" * 99_999, '{"status": []}', '{"versions": [], "hardware": 3}', "\udc80"],
    )
    def test_files_that_a_run_can_do_without(self, run_dir: Path, text: str) -> None:
        for name in ("overrides.yaml", "status.json", "env.json"):
            (run_dir / name).write_text(text, errors="surrogateescape")
        assert codes(run_dir) == {"resume": 0, "eval": 0, "ls": 0, "load": 0}

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "{}", '{"primary": "loss", "metrics": {"loss": 5}}', '{"primary": [], "metrics": {}}'],
    )
    def test_a_result_that_is_none_does_not_hide_the_new_one(
        self, run_dir: Path, text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (run_dir / "results.json").write_text(text)
        assert cli.main(["eval", str(run_dir), "eval.episodes=2"]) == 0
        assert (
            f"the run's own: {run_dir}/results.json is not the result of a run (" in capsys.readouterr().out
        )

    @pytest.mark.parametrize(
        "line", ["{", "[]", '{"step": 1}', '{"step": 1, "split": "train", "loss": "high"}', "[" * 99_999]
    )
    def test_measurements_that_are_none_are_found_before_training(
        self, run_dir: Path, line: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        (run_dir / "metrics.jsonl").write_text("\n".join([line, *lines]) + "\n")
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 3
        assert f"{run_dir}/metrics.jsonl, line 1 is no measurement" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "about",
        [5, {"published": 5}, {"published": {"value": 1}}, {"figures": [1]}, {"deviation": 3, "paper": "x"}],
    )
    def test_prose_that_no_table_could_print(
        self, run_dir: Path, about: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        saved = yaml.safe_load((run_dir / "config.yaml").read_text())
        saved["algo"]["about"] = about
        (run_dir / "config.yaml").write_text(yaml.safe_dump(saved))
        assert codes(run_dir) == {"resume": 2, "eval": 2, "ls": 0, "load": 2}
        assert "algo.about" in capsys.readouterr().err


def test_a_configuration_does_not_take_long_to_refuse(run_dir: Path) -> None:
    (run_dir / "config.yaml").write_text("a: &a [" + "x, " * 1000 + "]\n" + "b: [" + "*a, " * 200 + "]\n")
    start = time.monotonic()
    assert cli.main(["resume", str(run_dir)]) == 2
    assert time.monotonic() - start < 20


def test_compiled_code_is_never_taken_from_where_a_configuration_says(tmp_path: Path) -> None:
    """PyTorch unpickles what it finds in the cache of its compiler."""
    words = [
        "train",
        *TINY,
        "data=glyphs",
        "model=conv4",
        f"data.cache_dir={tmp_path}/theirs",
        "data.way=1000",
    ]
    code = (
        f"import os, sys; from metalearn.cli.main import main; main({words!r}); "
        "print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "mine")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == str(tmp_path / "mine" / "metalearn" / "compiler"), done.stderr
    assert (tmp_path / "mine" / "metalearn" / "compiler").stat().st_mode & 0o777 == 0o700
