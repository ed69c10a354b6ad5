"""What happens to checkpoints: damage is named and passed over, the best and the last are never pruned."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn.errors import CheckpointError, MetalearnError
from metalearn.rundir.checkpoint_files import METADATA, TRAINING_FILE, WEIGHTS_FILE, first_line
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability.harness import KILLED, assert_same_end, finish, resume, train
from tests.security.run_folders import sign


def truncate(path: Path) -> None:
    content = (path / WEIGHTS_FILE).read_bytes()
    (path / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])


def flip_bit(path: Path) -> None:
    content = bytearray((path / WEIGHTS_FILE).read_bytes())
    content[-3] ^= 1
    (path / WEIGHTS_FILE).write_bytes(content)


def flip_bit_of_metadata(path: Path) -> None:
    content = bytearray((path / METADATA).read_bytes())
    content[len(content) // 2] ^= 1
    (path / METADATA).write_bytes(content)


def empty(path: Path) -> None:
    (path / TRAINING_FILE).write_bytes(b"")


def miss_file(path: Path) -> None:
    (path / TRAINING_FILE).unlink()


def miss_metadata(path: Path) -> None:
    (path / METADATA).unlink()


def spoil_metadata(path: Path) -> None:
    rest = b'"files": []}'  # under a sum of its own
    (path / METADATA).write_bytes(first_line(rest) + rest)


DAMAGES = [truncate, flip_bit, flip_bit_of_metadata, empty, miss_file, miss_metadata, spoil_metadata]


@pytest.fixture(scope="module")
def stopped(cfg: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed before its final evaluation, with the checkpoints of steps 4 (best) and 6 or the like."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    assert finish(train(cfg, run_dir), fault="test:batch@1") == KILLED
    return run_dir


BIT_FLIPS = (flip_bit, flip_bit_of_metadata)
NUMBERED = [
    pytest.param(damage, marks=pytest.mark.fault(5 if damage in BIT_FLIPS else 4)) for damage in DAMAGES
]


@pytest.mark.parametrize("damage", NUMBERED)
def test_damage_is_found_and_named(
    damage: Callable[[Path], None], stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    store = CheckpointStore(tmp_path / "run")
    *_, older, newest = store.steps()
    assert store.newest().step == newest
    assert caplog.messages == []
    damage(store.path(newest))
    assert store.newest().step == older
    assert len(caplog.messages) == 1
    assert f"step-{newest:06d} is not valid" in caplog.messages[0]
    assert f"falling back to step-{older:06d}" in caplog.messages[0]


@pytest.mark.parametrize("damage", NUMBERED)
def test_run_with_a_corrupt_newest_checkpoint_ends_the_same(
    damage: Callable[[Path], None], stopped: Path, reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    store = CheckpointStore(run_dir)
    newest = store.steps()[-1]
    damage(store.path(newest))
    assert finish(resume(run_dir)) == 0
    log = (run_dir / "train.log").read_text()
    assert re.search(rf"step-{newest:06d} is not valid: .*; falling back to step-", log)
    assert ("does not have the sha256 that was written" in log) == (damage in BIT_FLIPS)
    assert_same_end(run_dir, reference)


@pytest.mark.fault(6)
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_valid_checkpoint_is_exit_4_and_names_all(
    damage: Callable[[Path], None], stopped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    store = CheckpointStore(run_dir)
    for step in store.steps():
        damage(store.path(step))
    status = (run_dir / "status.json").read_bytes()
    assert finish(resume(run_dir)) == 4
    error = capfd.readouterr().err
    assert all(store.path(step).name in error for step in store.steps())
    assert (run_dir / "status.json").read_bytes() == status


@pytest.mark.fault(16)
def test_pickle_in_place_of_tensors_is_refused_and_never_run(stopped: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    store = CheckpointStore(run_dir)
    path = store.path(store.steps()[-1]) / WEIGHTS_FILE
    torch.save(Bomb(canary), path)
    sign(path.parent)
    with pytest.raises(CheckpointError, match="is not valid"):
        store.load(store.steps()[-1])
    assert not canary.exists()


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.fault(7)
def test_full_disk_is_one_clear_line_and_keeps_what_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"w": torch.ones(2)}, {})

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("metalearn.rundir.checkpoints.write_synced", refuse)
    with pytest.raises(
        MetalearnError,
        match=r"cannot save .*step-000002: .*No space left on device.*Checkpoints kept: step-000001",
    ):
        store.save(2, {"w": torch.ones(2)}, {})
    monkeypatch.undo()
    assert store.newest().step == 1


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=7),
    keep_last=st.integers(1, 3),
    keep_best=st.integers(1, 3),
)
def test_pruning_keeps_the_newest_and_the_best(
    values: list[float], keep_last: int, keep_best: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store"), keep_last=keep_last, keep_best=keep_best)
    for step in range(len(values)):
        ranked = sorted(range(step + 1), key=lambda s: (-values[s], s))
        store.save(step, {"w": torch.tensor(float(step))}, {"step": step}, ranked=ranked)
        newest = range(max(0, step + 1 - keep_last), step + 1)
        best_then = {max(range(s + 1), key=lambda t: (values[t], -t)) for s in {*newest, *ranked[:keep_best]}}
        assert set(store.steps()) == {*newest, *ranked[:keep_best], *best_then}
        assert store.pointed("last") == step
        assert store.pointed("best") == ranked[0]


@pytest.mark.fault(2)
def test_process_killed_while_it_replaced_a_checkpoint_loses_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"w": torch.ones(2)}, {})
    store.path(1).rename(store.path(1).with_suffix(".old"))
    store.recover()
    assert store.newest().step == 1
