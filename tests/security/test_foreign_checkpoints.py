"""Checkpoints that somebody else wrote, with sums which say that they are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from metalearn.cli import main as cli
from metalearn.rundir.checkpoint_files import METADATA, TRAINING_FILE, WEIGHTS_FILE, first_line
from metalearn.rundir.state import RANDOM, WEIGHTS
from tests.security.run_folders import checkpoints, codes, sign

pytestmark = pytest.mark.usefixtures("never_unexpected")


class TestWhatIsNoCheckpoint:
    """Tensors and facts that somebody wrote together with sums which say that they are right."""

    TENSOR_CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "no weights": lambda tensors: [
            tensors.pop(name) for name in list(tensors) if name.startswith("weights.")
        ],
        "one weight more": lambda tensors: tensors.update({"weights.evil": torch.ones(3)}),
        "another shape": lambda tensors: tensors.update(
            {name: torch.ones(7) for name in tensors if name.startswith("weights.")}
        ),
        "no random state": lambda tensors: tensors.pop(RANDOM),
        "a short random state": lambda tensors: tensors.update({RANDOM: torch.zeros(3, dtype=torch.uint8)}),
        "a random state of floats": lambda tensors: tensors.update({RANDOM: torch.zeros(5056)}),
        "moments of another shape": lambda tensors: tensors.update(
            {name: torch.ones(9) for name in tensors if name.endswith("exp_avg")}
        ),
        "half of the moments": lambda tensors: [
            tensors.pop(name) for name in list(tensors) if name.endswith("exp_avg_sq")
        ],
        "moments of no parameter": lambda tensors: tensors.update({"optimizer.999.exp_avg": torch.ones(1)}),
        "moments without a number": lambda tensors: tensors.update({"optimizer.x.exp_avg": torch.ones(1)}),
        "sums of many": lambda tensors: tensors.update({"window.loss": torch.ones(5)}),
        "nothing": dict.clear,
    }
    FACT_CHANGES: tuple[dict[str, Any], ...] = (
        *(
            {"config": 3},
            {"config": None},
            {"step": 3},
            {"step": "4"},
            {"step": True},
            {"record": 5},
            {"record": [5]},
            {"record": [["x", 1]]},
        ),
        *(
            {"metrics_offset": -1},
            {"metrics_offset": 1e9},
            {"optimizer": {}},
            {"optimizer": [[1]]},
            {"plan": []},
            {"plan": {"name": "x"}},
        ),
        *(
            {"plan": {"name": "vmap", "chunk": -5, "compile": False}},
            {"window_count": -1},
            {"evaluated_step": None},
            {"data_sha256": 5},
        ),
    )

    @pytest.mark.parametrize("name", TENSOR_CHANGES)
    def test_tensors_that_are_not_this_run_s(self, run_dir: Path, name: str) -> None:
        for folder in checkpoints(run_dir):
            weights, rest = (load_file(folder / file) for file in (WEIGHTS_FILE, TRAINING_FILE))
            tensors = {f"{WEIGHTS}{key}": value for key, value in weights.items()} | rest
            self.TENSOR_CHANGES[name](tensors)
            weights = {key.removeprefix(WEIGHTS): tensors[key] for key in tensors if key.startswith(WEIGHTS)}
            save_file(weights, folder / WEIGHTS_FILE)
            save_file(
                {key: tensors[key] for key in tensors if not key.startswith(WEIGHTS)}, folder / TRAINING_FILE
            )
            sign(folder)
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 4

    @pytest.mark.parametrize("change", FACT_CHANGES, ids=str)
    def test_facts_that_are_not_this_run_s(
        self, run_dir: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for folder in checkpoints(run_dir):
            facts = {**json.loads((folder / METADATA).read_text()), **change}
            (folder / METADATA).write_text(json.dumps(facts))
            sign(folder)
        before = {
            path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"
        }
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 4
        assert "no valid checkpoint" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in before} == before

    @pytest.mark.parametrize("name", ["config", "data_sha256", "metrics_offset"])
    def test_facts_that_are_missing(
        self, run_dir: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for folder in checkpoints(run_dir):
            facts = json.loads((folder / METADATA).read_text())
            del facts[name]
            (folder / METADATA).write_text(json.dumps(facts))
            sign(folder)
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 4
        assert f"is not valid: its metadata.json says nothing of {name}" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "text",
        ["[", "[" * 99_999, '{"files": 5}', '{"format_version": 2, "files": {"x": 1}}', "\x00", "null", "5"],
    )
    @pytest.mark.parametrize("signed", [False, True])
    def test_metadata_that_are_none(self, run_dir: Path, text: str, signed: bool) -> None:
        for folder in checkpoints(run_dir):
            (folder / METADATA).write_text(text)
            if signed:
                content = text.removeprefix("{").encode()
                (folder / METADATA).write_bytes(first_line(content) + content)
        assert codes(run_dir) == {"resume": 4, "eval": 4, "ls": 0, "load": 4}

    @pytest.mark.parametrize("last", ["step-²", "step-٠٠٠٠٠٤", "step-99999999999999999999999", "step-"])
    def test_a_folder_with_an_odd_name_is_no_checkpoint(self, run_dir: Path, last: str) -> None:
        for name in (last, "step-1", "step-000001.x", "step--00001"):
            (run_dir / "checkpoints" / name).mkdir()
        (run_dir / "checkpoints" / "last").write_text(f"{last}\n")
        assert codes(run_dir) == {"resume": 0, "eval": 0, "ls": 0, "load": 0}
