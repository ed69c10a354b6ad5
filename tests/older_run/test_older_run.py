"""Run folders of commit 61490f1, with checkpoints of format 1, open, are judged and go on as they did there.

`make.py` says what is stored and how it was made.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import metalearn
from metalearn.cli import main as cli
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.rundir.environment import machine
from metalearn.sweep import smoke

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
IMAGES = HERE / "images" / "expected"
MACHINES = {place: json.loads((place / "machine.json").read_text()) for place in (EXPECTED, IMAGES)}
TOLERANCE = 1e-9  # between machines


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HERE / "run", tmp_path / "run"))


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(HERE / "images" / "run", tmp_path / "images"))


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    with smoke.as_it_was():
        yield


def test_it_is_resumed_to_the_same_end(older: Path) -> None:
    assert cli.main(["resume", str(older)]) == 0
    wanted = measurements(EXPECTED / "resumed" / "metrics.jsonl")
    assert as_far_as(measurements(older / "metrics.jsonl"), wanted) == like(wanted)
    assert_same_results(older, EXPECTED / "resumed")
    store = CheckpointStore(older)
    assert {path.name for path in store.path(8).iterdir()} == {
        *("weights.safetensors", "training.safetensors", "metadata.json")
    }


def test_it_is_judged_as_it_was(older: Path) -> None:
    assert cli.main(["eval", str(older), "data.shot=5"]) == 0
    [folder] = (older / "evals").iterdir()
    assert_same_results(folder, EXPECTED / "evaluation")


def test_one_on_images_is_resumed_to_the_same_end(images: Path) -> None:
    assert cli.main(["resume", str(images)]) == 0
    wanted = measurements(IMAGES / "resumed" / "metrics.jsonl")
    assert as_far_as(measurements(images / "metrics.jsonl"), wanted) == like(wanted, IMAGES)
    assert_same_results(images, IMAGES / "resumed", IMAGES)


def test_one_on_images_is_judged_as_it_was(images: Path) -> None:
    assert cli.main(["eval", str(images), "data.shot=2", "eval.chunk=5"]) == 0
    [folder] = (images / "evals").iterdir()
    assert_same_results(folder, IMAGES / "evaluation", IMAGES)


def test_one_on_images_is_loaded(images: Path) -> None:
    loaded = metalearn.load(images)
    pictures = torch.rand(4, 1, 14, 14, dtype=torch.float64)
    prediction = loaded.adapt(pictures[:3], ["a", "b", "c"]).predict(pictures)
    assert len(prediction) == 4


def test_it_is_loaded_and_shown(older: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(older / "checkpoints" / "step-000005")
    loaded = metalearn.load(older / "checkpoints" / "best")
    [prediction] = loaded.adapt([[0.5], [1.0]], [0.1, 0.2]).predict([[0.7]]).flatten().tolist()
    assert math.isfinite(prediction)
    saved = CheckpointStore(older).load(4).tensors
    weights = loaded.algorithm.state_dict()
    assert all(
        torch.equal(saved[f"weights.{name}"].to(value.dtype), value) for name, value in weights.items()
    )
    assert cli.main(["show", str(older / "checkpoints" / "best")]) == 0
    shown = capsys.readouterr().out
    assert "step-000004 (best): step 4, validated at 2.02392, plan vmap" in shown
    assert "tensors.safetensors 8,800 bytes, facts.json" in shown


@pytest.mark.parametrize("name", ["tensors.safetensors", "facts.json", "manifest.json"])
def test_damage_in_it_is_found(older: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = older / "checkpoints" / "step-000005" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert cli.main(["resume", str(older)]) == 0
    shown = capsys.readouterr().out
    assert "step-000005 is not valid: " in shown
    assert "falling back to step-000004" in shown
    assert_same_results(older, EXPECTED / "resumed")


def assert_same_results(folder: Path, expected: Path, made: Path = EXPECTED) -> None:
    found, wanted = (json.loads((place / "results.json").read_text()) for place in (folder, expected))
    assert as_far_as(found, wanted) == like(wanted, made)
    assert as_far_as(scores(folder / "eval_test.csv"), scores(expected / "eval_test.csv")) == like(
        scores(expected / "eval_test.csv"), made
    )


def as_far_as(found: Any, known: Any) -> Any:
    """What was found without the keys that a result has gained since."""
    if isinstance(known, list) and isinstance(found, list) and len(known) == len(found):
        return [as_far_as(*pair) for pair in zip(found, known, strict=True)]
    if not isinstance(known, dict) or not isinstance(found, dict):
        return found
    return {name: as_far_as(found[name], value) for name, value in known.items()}


def scores(path: Path) -> dict[str, list[float | str]]:
    head, *rows = [line.split(",") for line in path.read_text().splitlines()]
    return {name: [number(row[i]) for row in rows] for i, name in enumerate(head)}


def measurements(path: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, path.read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith("time_")} for line in lines]


def number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def like(tree: Any, made: Path = EXPECTED) -> Any:
    """What equals this tree: to the bit on the machine that made it, elsewhere to the last digits.

    made: the folder that says which machine that was.
    """
    if isinstance(tree, dict):
        return {name: like(value, made) for name, value in tree.items()}
    if isinstance(tree, list):
        return [like(value, made) for value in tree]
    exact = machine() == MACHINES[made] or not isinstance(tree, float)
    return tree if exact else pytest.approx(tree, rel=TOLERANCE, nan_ok=True)
