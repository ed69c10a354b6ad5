"""A run whose order changes on the way is the same wherever it is stopped, and by every plan and rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metalearn.cli import main as cli

SMALL = [
    *("data=sinusoid", "algo=maml", "algo.inner_lr=0.01", "device=cpu", "device.precision=float64"),
    *("trainer.meta_batch_size=3", "trainer.eval_every=10", "trainer.log_every=1", "eval.episodes=4"),
    *("eval.val_episodes=4", "optimizer.lr=0.01", "data.shot=5", "data.query_shot=5"),
]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:06}" / "weights.safetensors")


def train(folder: Path, steps: int, *words: str) -> Path:
    assert cli.main(["train", *SMALL, f"trainer.outer_steps={steps}", f"run_dir={folder}", *words]) == 0
    return folder


def test_a_resumed_run_changes_its_order_where_one_without_a_stop_does(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 6, "algo.warmup_steps=3")
    for stop in (2, 4):  # within the warm-up, and after it
        parts = train(tmp_path / f"stopped_{stop}", stop, "algo.warmup_steps=3")
        assert cli.main(["resume", str(parts), "trainer.outer_steps=6"]) == 0
        expected = weights(whole, 6)
        assert all(torch.equal(value, expected[name]) for name, value in weights(parts, 6).items())


def test_it_is_first_order_to_the_step_and_second_order_from_there(tmp_path: Path) -> None:
    first = train(tmp_path / "first", 3, "algo.order=1")
    warm = train(tmp_path / "warm", 3, "algo.warmup_steps=3")
    further = train(tmp_path / "further", 4, "algo.warmup_steps=3")
    longer = train(tmp_path / "longer", 4, "algo.warmup_steps=4")
    same, expected = weights(warm, 3), weights(first, 3)
    for name, value in same.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-13)
    one, other = weights(further, 4), weights(longer, 4)
    assert any(not torch.allclose(one[name], other[name], rtol=1e-9) for name in one)


@pytest.mark.parametrize("words", [["device.plan=loop"], ["device.ranks=3", "device.plan=vmap"]])
def test_other_plans_and_ranks_change_it_at_the_same_step(words: list[str], tmp_path: Path) -> None:
    usual = weights(train(tmp_path / "usual", 4, "algo.warmup_steps=2"), 4)
    for name, value in weights(train(tmp_path / "other", 4, "algo.warmup_steps=2", *words), 4).items():
        torch.testing.assert_close(value, usual[name], rtol=1e-9, atol=1e-11)
