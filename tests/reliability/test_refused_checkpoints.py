"""Faults 3 and 7: a checkpoint, or its pointer, that is refused by the disk or cannot be serialized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.rundir import checkpoints
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability import harness
from tests.reliability.harness import assert_same_end, before_writing, finish, told, train


@pytest.fixture(scope="module")
def judged(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, int]:
    """A run that is validated at every step, what it leaves, and its best step, which is neither the first
    nor the last.
    """
    words = [
        "trainer.outer_steps=6",
        "trainer.checkpoint_every=6",
        "trainer.eval_every=1",
        "trainer.keep_last=1",
        "seed=2",
    ]
    cfg, run_dir = (
        harness.configuration(cache, *harness.QUICK, *words),
        tmp_path_factory.mktemp("judged") / "run",
    )
    assert finish(train(cfg, run_dir)) == 0
    best = CheckpointStore(run_dir).pointed("best")
    assert best is not None and 1 < best < 6
    return cfg, run_dir, best


@pytest.mark.fault(7)
@pytest.mark.parametrize("name", ["last", "best"])
def test_fault_07_a_whole_checkpoint_stays_the_best_though_its_pointer_cannot_be_written(
    name: str, judged: tuple[dict[str, Any], Path, int], tmp_path: Path
) -> None:
    cfg, reference, best = judged
    run_dir = tmp_path / "run"

    def refuse(path: Path, content: bytes) -> None:
        if (
            path.name == name
            and content == f"step-{best:06d}\n".encode()
            and CheckpointStore(run_dir).steps()[-1] == best
        ):
            raise OSError(28, "No space left on device")

    code, text = told(before_writing(train(cfg, run_dir), checkpoints, "replace_file", refuse))
    assert code == 0
    [warning] = [line for line in text.splitlines() if line.startswith("warning")]
    assert warning.startswith(
        f"warning: cannot write {run_dir}/checkpoints/{name}: No space left on device; training goes on"
    )
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
def test_fault_07_a_validation_whose_checkpoint_was_refused_cannot_be_chosen_and_that_is_said(
    judged: tuple[dict[str, Any], Path, int], tmp_path: Path
) -> None:
    cfg, _, best = judged
    run_dir = tmp_path / "run"

    def refuse(path: Path, content: bytes) -> None:
        if path.parent.name == f"step-{best:06d}.tmp":
            raise OSError(28, "No space left on device")

    code, text = told(before_writing(train(cfg, run_dir), checkpoints, "write_synced", refuse))
    assert code == 0
    [warning] = [line for line in text.splitlines() if line.startswith("warning")]
    assert f"cannot save {run_dir}/checkpoints/step-{best:06d}: No space left on device" in warning
    assert f"; the validation at step {best} can no longer be chosen" in warning
    record = CheckpointStore(run_dir).newest().metadata["record"]
    assert [step for step, _ in record] == [step for step in range(1, 7) if step != best]


@pytest.mark.fault(3)
def test_fault_03_a_tensor_that_cannot_be_written_leaves_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    """The second one raises on its way to the file, when the folder of the checkpoint exists."""

    class Unwritable(Tensor):
        def detach(self) -> Tensor:
            raise RuntimeError("the memory of this tensor is gone")

    store = CheckpointStore(tmp_path)
    store.save(1, {"w": torch.ones(2)}, {"step": 1})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError, match="is gone"):
        store.save(2, {"w": torch.ones(2), "x": torch.ones(2).as_subclass(Unwritable)}, {"step": 2})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last", "step-000001"]
    assert store.newest().step == 1
