"""Synthetic ratings: users with ragged, padded supports, each met once."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.core import Task
from metalearn.data.sampling import SPLITS
from metalearn.data.synthetic_ratings import SyntheticRatings
from metalearn.errors import ConfigError
from tests.shipped import built

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ratings() -> SyntheticRatings:
    return built(SyntheticRatings, device=CPU)


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
    met = {
        split: [_fingerprint(ratings, task) for task in _single(ratings, split, counts[split])]
        for split in SPLITS
    }
    assert all(len(set(users)) == counts[split] for split, users in met.items())
    assert len(set().union(*met.values())) == 4000


def test_a_user_has_the_same_ratings_whatever_the_seed(ratings: SyntheticRatings) -> None:
    users = [
        {_fingerprint(ratings, task) for task in _single(ratings, "val", 400, seed=seed)} for seed in (0, 1)
    ]
    assert users[0] == users[1]


def _single(source: SyntheticRatings, split: str, count: int, *, seed: int = 0) -> list[Task]:
    batch = source.tasks(split, seed=seed, first=0, count=count)  # type: ignore[arg-type]
    return [tree_map(lambda leaf, t=t: leaf[t], batch) for t in range(count)]


def _fingerprint(source: SyntheticRatings, task: Task) -> tuple[float, ...]:
    """All ratings of the user, in order: no two users share them."""
    return tuple(
        torch.cat([task.support.y[task.support.mask], task.query.y]).flatten().sort().values.tolist()
    )


def test_no_rating_is_in_support_and_query(ratings: SyntheticRatings) -> None:
    for task in _single(ratings, "val", 100):
        support, query = (
            set(y.flatten().tolist()) for y in (task.support.y[task.support.mask], task.query.y)
        )
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
        built(SyntheticRatings, device=CPU, query_shot=5, max_ratings=600)
    assert len(caught.value.problems) == 2
    assert "data.query_shot=5 leaves nothing to adapt on for users with data.min_ratings=5" in str(
        caught.value
    )
