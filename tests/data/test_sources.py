"""What every source promises, and what each of the procedural ones is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.core import Source, Task
from metalearn.data.glyphs import Glyphs, draw_glyphs
from metalearn.data.sampling import SPLITS
from metalearn.data.sinusoid import Sinusoid
from metalearn.data.synthetic_ratings import SyntheticRatings
from metalearn.errors import ConfigError

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


def small_glyphs(cache: Path, **dials: object) -> Glyphs:
    return Glyphs(device=CPU, cache_dir=str(cache), **{"num_classes": 120, "query_shot": 3, **dials})  # type: ignore[arg-type]


# --- every source ----------------------------------------------------------------------------------------------------


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


# --- glyphs ----------------------------------------------------------------------------------------------------------


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
    tasks = small_glyphs(glyph_cache, num_classes=400, query_shot=15).tasks("test", seed=0, first=0, count=300)
    support, query = (F.normalize(x.flatten(2), dim=-1) for x in (tasks.support.x, tasks.query.x))
    assert isinstance(support, Tensor)
    found = (query @ support.transpose(1, 2)).argmax(-1)
    assert 0.40 < (found == tasks.query.y).float().mean() < 0.60


def test_splits_share_no_class_and_no_image(glyph_cache: Path) -> None:
    source = small_glyphs(glyph_cache, rotations=["train", "val", "test"])
    classes = [set(source._set.partition[split]) for split in SPLITS]
    assert sum(map(len, classes)) == len(set.union(*classes)) == 120
    images = [{hashlib.sha256(image.numpy().tobytes()).digest() for image in source._stores[split].rows} for split in SPLITS]
    assert sum(map(len, images)) == len(set.union(*images))


def test_rotations_are_classes_of_their_own(glyph_cache: Path) -> None:
    source = small_glyphs(glyph_cache, rotations=["val"])
    assert [source.protocol(split)["num_classes"] for split in SPLITS] == [80, 40, 30]
    rows = source._stores["val"].rows
    for turn in range(4):
        assert torch.equal(rows[turn * 200 : (turn + 1) * 200], rows[:200].rot90(turn, (-2, -1)))


def test_invert_swaps_ink_and_paper(glyph_cache: Path) -> None:
    shown = [small_glyphs(glyph_cache, invert=invert).tasks("val", seed=0, first=0, count=2).query.x for invert in (True, False)]
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
        numbers = torch.tensor([index[(image * 255).round().to(torch.uint8).numpy().tobytes()] for image in x])
        assert len(numbers.unique()) == 100
        assert len({(int(label), int(c)) for label, c in zip(y, store.class_of_row[numbers], strict=True)}) == 5


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
        Glyphs(device=CPU, cache_dir=str(tmp_path), way=150, shot=25, train={"way": 900, "shot": None, "query_shot": 1})
    assert caught.value.problems == [
        "data.train.way=900 but split 'train' of glyphs has 800 classes; lower data.train.way or give the split more classes",
        "data.shot=25 + data.train.query_shot=1 needs 26 images per class, but split 'train' of glyphs has a class with 20; "
        "lower data.shot or data.train.query_shot",
        "data.way=150 but split 'val' of glyphs has 100 classes; lower data.way or give the split more classes",
        "data.shot=25 + data.query_shot=15 needs 40 images per class, but split 'val' of glyphs has a class with 20 and "
        "split 'test' of glyphs has a class with 20; lower data.shot or data.query_shot",
    ]
    with pytest.raises(ConfigError, match=r"data\.way=-3; expected at least 2"):
        Glyphs(device=CPU, cache_dir=str(tmp_path), way=-3)
    with pytest.raises(ConfigError, match="data.rotations holds 'tain', which is no split"):
        Glyphs(device=CPU, cache_dir=str(tmp_path), rotations=["tain"])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


# --- sinusoid --------------------------------------------------------------------------------------------------------


def test_sinusoids_follow_the_published_ranges() -> None:
    task = Sinusoid(device=CPU, shot=40, query_shot=200).tasks("train", seed=0, first=0, count=5000)
    assert isinstance(task.query.x, Tensor)
    assert -5 <= task.query.x.min() < -4.99
    assert 4.99 < task.query.x.max() < 5
    # E[A²]/2 · E[1 - cos(2x - 2φ)] over the ranges is 4.25: the error of predicting zero.
    assert abs(float(task.query.y.square().mean()) - 4.25) < 0.15
    peak = task.query.y.abs().amax((1, 2))
    assert 0.09 < peak.min() < 0.2
    assert 4.9 < peak.max() <= 5


def test_support_and_query_lie_on_one_sinusoid() -> None:
    task = Sinusoid(device=CPU).tasks("test", seed=0, first=0, count=20)
    rows = [(side.x.double(), side.y.double()) for side in (task.support, task.query) if isinstance(side.x, Tensor)]
    basis = [torch.cat([x.sin(), x.cos()], -1) for x, _ in rows]
    fit = torch.linalg.lstsq(basis[0], rows[0][1]).solution
    assert (basis[1] @ fit - rows[1][1]).abs().max() < 1e-4
    phase = torch.atan2(-fit[:, 1, 0], fit[:, 0, 0])
    assert -1e-4 < phase.min()
    assert phase.max() < math.pi + 1e-4


def test_sinusoid_refuses_ranges_that_are_none() -> None:
    with pytest.raises(ConfigError) as caught:
        Sinusoid(device=CPU, shot=0, amplitude=[5, 1], phase=[1])
    assert caught.value.problems == [
        "data.shot=0; expected at least 1",
        "data.amplitude=[5, 1]; expected [low, high] with low <= high",
        "data.phase=[1]; expected [low, high] with low <= high",
    ]


def test_sources_without_classes_have_no_flat_minibatches() -> None:
    with pytest.raises(ValueError, match="data=sinusoid has no labelled classes"):
        Sinusoid(device=CPU).examples(seed=0, first=0, count=1)


# --- synthetic ratings -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ratings() -> SyntheticRatings:
    return SyntheticRatings(device=CPU)


def test_users_have_between_five_and_forty_ratings_and_padding_is_finite(ratings: SyntheticRatings) -> None:
    task = ratings.tasks("test", seed=0, first=0, count=1200)
    have = task.support.mask.sum(1) + task.query.mask.sum(1)
    assert have.min() == 5
    assert have.max() == 40
    assert task.query.mask.all()
    # Real rows come first, and what pads them is an item that exists and a rating of 0.
    assert (task.support.mask.long().diff(dim=1) <= 0).all()
    assert (task.support.y[~task.support.mask] == 0).all()
    real = task.support.y[task.support.mask]
    assert 1 <= real.min() < real.max() <= 5
    assert all(bool(torch.isfinite(leaf.double()).all()) for leaf in tree_leaves(task))


def test_codes_lie_in_their_vocabulary(ratings: SyntheticRatings) -> None:
    specs = ratings.spec("train").input_spec
    x = ratings.tasks("train", seed=0, first=0, count=2400).support.x
    assert isinstance(specs, dict)
    assert isinstance(x, dict)
    for name, spec in specs.items():
        assert spec.num_categories is not None
        assert x[name].dtype == torch.int64
        assert 0 <= x[name].min()
        assert int(x[name].max()) == spec.num_categories - 1


def test_evaluation_meets_every_user_once_and_splits_share_none(ratings: SyntheticRatings) -> None:
    counts = {split: ratings.num_tasks(split) for split in SPLITS}
    assert counts == {"train": 2400, "val": 400, "test": 1200}
    met = {split: [_fingerprint(ratings, task) for task in _single(ratings, split, counts[split])] for split in SPLITS}
    assert all(len(set(users)) == counts[split] for split, users in met.items())
    assert len(set().union(*met.values())) == 4000


def test_a_user_has_the_same_ratings_whatever_the_seed(ratings: SyntheticRatings) -> None:
    users = [{_fingerprint(ratings, task) for task in _single(ratings, "val", 400, seed=seed)} for seed in (0, 1)]
    assert users[0] == users[1]


def _single(source: SyntheticRatings, split: str, count: int, *, seed: int = 0) -> list[Task]:
    batch = source.tasks(split, seed=seed, first=0, count=count)  # type: ignore[arg-type]
    return [tree_map(lambda leaf, t=t: leaf[t], batch) for t in range(count)]


def _fingerprint(source: SyntheticRatings, task: Task) -> tuple[float, ...]:
    """All ratings of the user, in order: no two users share them."""
    return tuple(torch.cat([task.support.y[task.support.mask], task.query.y]).flatten().sort().values.tolist())


def test_no_rating_is_in_support_and_query(ratings: SyntheticRatings) -> None:
    for task in _single(ratings, "val", 100):
        support, query = (set(y.flatten().tolist()) for y in (task.support.y[task.support.mask], task.query.y))
        # Clipped ratings may coincide; others are real numbers that do not.
        assert not (support & query) - {1.0, 5.0}


def test_the_support_of_a_user_tells_about_the_query(ratings: SyntheticRatings) -> None:
    task = ratings.tasks("test", seed=0, first=0, count=1200)
    mean = (task.support.y * task.support.mask[..., None]).sum(1) / task.support.mask.sum(1, keepdim=True)
    everyone = mean.mean()
    shrunk = everyone + (mean - everyone) * 0.7
    adapted, unadapted = ((task.query.y - guess).abs().mean() for guess in (shrunk[:, None], everyone))
    assert adapted < 0.95 * unadapted


def test_ratings_refuse_sizes_that_leave_nothing_to_adapt_on() -> None:
    with pytest.raises(ConfigError) as caught:
        SyntheticRatings(device=CPU, num_users=5, query_shot=5, max_ratings=600)
    assert len(caught.value.problems) == 3
    assert "data.query_shot=5 leaves nothing to adapt on for users with data.min_ratings=5" in str(caught.value)
