"""Batches drawn in blocks are those drawn one by one, bit for bit, from any step on."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves

from metalearn.build.objects import build_algorithm, build_source
from metalearn.config.compose import compose
from metalearn.engine import loader
from metalearn.engine.loader import TaskLoader, draw_batch
from metalearn.engine.settings import Settings
from tests.engine.toy import ToyAlgorithm, ToySource

CPU = torch.device("cpu")
SMALL = [
    "trainer.meta_batch_size=5",
    "trainer.batch_size=3",
    "data.cache_dir={cache}",
    "data.num_classes=48",
    "data.num_drawings=6",
]
GLYPHS = ["data=glyphs", "data.image_size=14", "data.way=3", "data.query_shot=2", "model.channels=4", *SMALL]
RUNS = {
    "sinusoid": ["data=sinusoid", "trainer.meta_batch_size=5"],
    "ratings": ["data=synthetic_ratings", "algo.adapts=[head]", "trainer.meta_batch_size=3"],
    "glyphs": ["algo=protonet", *GLYPHS],
    "examples": ["algo=baseline", *GLYPHS],
    "draws": ["algo=reptile", *GLYPHS],
}


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_blocks_change_no_bit(
    words: list[str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "BLOCK_BYTES", 1 << 26)
    cfg = compose([word.format(cache=tmp_path_factory.getbasetemp() / "feed") for word in words])
    source = build_source(cfg, CPU)
    algorithm, settings = build_algorithm(cfg, source, CPU), Settings.of(cfg)
    for share in (None, range(1, 3)):
        drawn = TaskLoader(algorithm, source, settings, share)
        for step in (*range(130), 500, 3):
            batch, expected = drawn.draw(step), draw_batch(algorithm, source, settings, step, share)
            for mine, theirs in zip(tree_leaves(batch), tree_leaves(expected), strict=True):
                assert torch.equal(mine, theirs), (step, share)
        assert drawn.length > 1


def test_small_batches_are_drawn_for_many_steps_at_once_and_large_ones_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings.of(compose(["trainer.meta_batch_size=4"]))
    for largest, calls in ((1 << 18, 3), (1, 128)):
        monkeypatch.setattr(loader, "BLOCK_BYTES", largest)
        source = ToySource()
        drawn = TaskLoader(ToyAlgorithm(), source, settings)
        for step in range(128):
            drawn.draw(step)
        assert len(source.asked) == calls
