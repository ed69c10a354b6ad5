"""Glyphs: characters that are drawn, and the classes, rotations and episodes made of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.data.glyphs import Glyphs, draw_glyphs
from metalearn.data.sampling import SPLITS
from metalearn.errors import ConfigError
from tests.shipped import built

CPU = torch.device("cpu")


def small_glyphs(cache: Path, **dials: object) -> Glyphs:
    return built(Glyphs, device=CPU, cache_dir=str(cache), **{"num_classes": 120, "query_shot": 3, **dials})  # type: ignore[arg-type]


def test_glyphs_are_the_same_for_the_same_seed_and_precision() -> None:
    first = draw_glyphs(30, 4, 7, 28)
    assert first.shape == (120, 1, 28, 28)
    assert torch.equal(first, draw_glyphs(30, 4, 7, 28))
    assert torch.equal(first[:40], draw_glyphs(10, 4, 7, 28))
    assert not torch.equal(first, draw_glyphs(30, 4, 8, 28))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(first, draw_glyphs(30, 4, 7, 28))
    finally:
        torch.set_default_dtype(torch.float32)


def test_glyphs_all_have_ink_and_paper() -> None:
    share = (draw_glyphs(200, 5, 0, 28) < 128).float().mean((1, 2, 3))
    assert share.min() > 0.005
    assert share.max() < 0.5


def test_raw_pixels_tell_glyphs_about_as_well_as_omniglot(glyph_cache: Path) -> None:
    # Omniglot under the same rule gives 42 %. Far below or above, glyphs would stand in for nothing.
    tasks = small_glyphs(glyph_cache, num_classes=400, query_shot=15).tasks(
        "test", seed=0, first=0, count=300
    )
    support, query = (F.normalize(x.flatten(2), dim=-1) for x in (tasks.support.x, tasks.query.x))
    assert isinstance(support, Tensor)
    found = (query @ support.transpose(1, 2)).argmax(-1)
    assert 0.40 < (found == tasks.query.y).float().mean() < 0.60


def test_splits_share_no_class_and_no_image(glyph_cache: Path) -> None:
    source = small_glyphs(glyph_cache, rotations=["train", "val", "test"])
    classes = [set(source._set.partition[split]) for split in SPLITS]
    assert sum(map(len, classes)) == len(set.union(*classes)) == 120
    images = [
        {hashlib.sha256(image.numpy().tobytes()).digest() for image in source._stores[split].rows}
        for split in SPLITS
    ]
    assert sum(map(len, images)) == len(set.union(*images))


def test_rotations_are_classes_of_their_own(glyph_cache: Path) -> None:
    source = small_glyphs(glyph_cache, rotations=["val"])
    assert [source.protocol(split)["num_classes"] for split in SPLITS] == [80, 40, 30]
    rows = source._stores["val"].rows
    for turn in range(4):
        assert torch.equal(rows[turn * 200 : (turn + 1) * 200], rows[:200].rot90(turn, (-2, -1)))


def test_invert_swaps_ink_and_paper(glyph_cache: Path) -> None:
    shown = [
        small_glyphs(glyph_cache, invert=invert).tasks("val", seed=0, first=0, count=2).query.x
        for invert in (True, False)
    ]
    torch.testing.assert_close(shown[0], 1 - shown[1])
    assert shown[0].mean() < 0.5
    assert {float(shown[0].min()), float(shown[0].max())} == {0.0, 1.0}


def test_support_and_query_hold_no_image_twice_and_match_their_labels(glyph_cache: Path) -> None:
    source = small_glyphs(glyph_cache, shot=5, query_shot=15)
    rows, store = source._stores["test"].rows, source._stores["test"]
    index = {image.numpy().tobytes(): number for number, image in enumerate(rows)}
    task = source.tasks("test", seed=0, first=0, count=4)
    for t in range(4):
        x = torch.cat([task.support.x[t], task.query.x[t]])
        y = torch.cat([task.support.y[t], task.query.y[t]])
        numbers = torch.tensor(
            [index[(image * 255).round().to(torch.uint8).numpy().tobytes()] for image in x]
        )
        assert len(numbers.unique()) == 100
        assert (
            len({(int(label), int(c)) for label, c in zip(y, store.class_of_row[numbers], strict=True)}) == 5
        )


def test_flat_minibatches_pass_over_all_rows_and_carry_their_class(glyph_cache: Path) -> None:
    source = small_glyphs(glyph_cache, num_classes=24, query_shot=1, way=2)
    total = len(source._stores["train"].rows)
    batches = [source.examples(seed=0, first=first, count=32) for first in range(0, total, 32)]
    y = torch.cat([batch.y for batch in batches])[:total]
    assert torch.equal(torch.bincount(y), torch.full((16,), 20))
    again = source.examples(seed=0, first=20, count=5)
    x = torch.cat([batch.x for batch in batches if isinstance(batch.x, Tensor)])
    assert isinstance(again.x, Tensor)
    assert torch.equal(again.x, x[20:25])
    assert torch.equal(again.y, y[20:25])


def test_impossible_sizes_are_told_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        built(
            Glyphs,
            device=CPU,
            cache_dir=str(tmp_path),
            way=150,
            shot=25,
            query_shot=15,
            train={"way": 900, "shot": None, "query_shot": 1},
        ).check(SPLITS)
    assert caught.value.problems == [
        "data.train.way=900 but split 'train' of glyphs has 800 classes; lower data.train.way or give the "
        "split more classes",
        "data.shot=25 + data.train.query_shot=1 needs 26 images per class, but split 'train' of glyphs has a "
        "class with 20; "
        "lower data.shot or data.train.query_shot",
        "data.way=150 but split 'val' of glyphs has 100 classes; lower data.way or give the split more "
        "classes",
        "data.shot=25 + data.query_shot=15 needs 40 images per class, but split 'val' of glyphs has a class "
        "with 20 and "
        "split 'test' of glyphs has a class with 20; lower data.shot or data.query_shot",
    ]
    assert list(tmp_path.iterdir()) == []
