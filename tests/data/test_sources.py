"""What every source promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.core import Source
from metalearn.data.glyphs import Glyphs
from metalearn.data.sampling import SPLITS
from metalearn.data.sinusoid import Sinusoid
from metalearn.data.synthetic_ratings import SyntheticRatings

CPU = torch.device("cpu")
Make = Callable[[], Source]


@pytest.fixture(params=["glyphs", "sinusoid", "synthetic_ratings"])
def make(request: pytest.FixtureRequest, glyph_cache: Path) -> Make:
    def glyphs() -> Source:
        train = {"way": 7, "shot": 2, "query_shot": None}
        return Glyphs(device=CPU, cache_dir=str(glyph_cache), num_classes=120, rotations=["train"], query_shot=3, train=train)

    made: dict[str, Make] = {
        "glyphs": glyphs,
        "sinusoid": lambda: Sinusoid(device=CPU),
        "synthetic_ratings": lambda: SyntheticRatings(device=CPU, num_users=200),
    }
    return made[request.param]


def test_tasks_have_the_shapes_of_their_spec(make: Make) -> None:
    source = make()
    for split in SPLITS:
        spec, task = source.spec(split), source.tasks(split, seed=0, first=5, count=3)
        for examples, size in ((task.support, spec.support_size), (task.query, spec.query_size)):
            assert examples.mask.shape == examples.y.shape[:2] == (3, size)
            assert examples.mask.dtype == torch.bool
            specs = spec.input_spec if isinstance(spec.input_spec, dict) else {"x": spec.input_spec}
            inputs = examples.x if isinstance(examples.x, dict) else {"x": examples.x}
            assert inputs.keys() == specs.keys()
            for name, x in inputs.items():
                assert x.shape == (3, size, *specs[name].shape)
        assert task.key.shape == (3,)
        assert bool(task.support.mask.all() and task.query.mask.all()) != spec.ragged


def test_tasks_do_not_depend_on_the_batch_they_come_in(make: Make) -> None:
    source, again = make(), make()
    together = source.tasks("val", seed=3, first=10, count=9)
    for first in range(10, 19, 3):
        part = again.tasks("val", seed=3, first=first, count=3)
        expected = tree_map(lambda leaf, start=first - 10: leaf[start : start + 3], together)
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(part), tree_leaves(expected), strict=True))


def test_seeds_and_splits_give_different_tasks(make: Make) -> None:
    source = make()
    keys = torch.cat([source.tasks(split, seed=seed, first=0, count=50).key for split in SPLITS for seed in (0, 1)])
    assert len(keys.unique()) == 300
    assert not torch.equal(
        source.tasks("test", seed=0, first=0, count=50).support.y, source.tasks("test", seed=1, first=0, count=50).support.y
    ) or (
        source.name == "glyphs"  # labels are sorted in every episode
    )


def test_the_fingerprint_and_the_protocol_are_stable_and_json(make: Make) -> None:
    import json

    assert make().fingerprint() == make().fingerprint()
    protocol = make().protocol("test")
    assert {"data", "split", "way", "shot", "query_shot", "partition", "augmentation"} <= protocol.keys()
    assert json.loads(json.dumps(protocol)) == protocol


def test_tasks_come_in_the_precision_of_the_run(make: Make) -> None:
    expected = make().tasks("train", seed=0, first=0, count=2)
    torch.set_default_dtype(torch.float64)
    try:
        found = make().tasks("train", seed=0, first=0, count=2)
    finally:
        torch.set_default_dtype(torch.float32)
    for single, double in zip(tree_leaves(expected), tree_leaves(found), strict=True):
        assert double.dtype == (torch.float64 if single.is_floating_point() else single.dtype)
        torch.testing.assert_close(double.to(single.dtype), single, rtol=1e-5, atol=1e-5)
