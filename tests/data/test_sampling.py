"""Every number of the runner leans on these draws: are they uniform, independent, and free of state?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metalearn.data import sampling
from metalearn.data.sampling import (
    ClassStore,
    draw_classes,
    draw_episodes,
    draw_examples,
    shuffled,
    task_keys,
)

EPISODES = 100_000
NUM_CLASSES, PER_CLASS = 24, 12
WAY, SHOT, QUERY_SHOT = 5, 2, 3
CPU = torch.device("cpu")
KNOWN_KEYS = [-5851804018384445987, -7547252211206233530]
KNOWN_CLASSES = [[149, 62, 241, 292, 99], [213, 261, 49, 63, 212]]


def p_value(counts: Tensor, *, variance: float = 1.0) -> float:
    """Of a chi-squared test that all cells are equally likely. variance: of a count, relative to independent
    draws.
    """
    expected = counts.sum().double() / counts.numel()
    statistic = (counts.double() - expected).square().sum() / expected / variance
    return float(torch.special.gammaincc(torch.tensor((counts.numel() - 1) / 2).double(), statistic / 2))


def assert_uniform(counts: Tensor, *, variance: float = 1.0) -> None:
    """Neither uneven nor more even than chance allows."""
    assert 1e-4 < p_value(counts, variance=variance) < 1 - 1e-4


def pairs(first: Tensor, second: Tensor, size: int) -> Tensor:
    """Counts (size, size) of pairs of numbers below size."""
    return torch.bincount(first * size + second, minlength=size * size).reshape(size, size)


@pytest.fixture(scope="module")
def store() -> ClassStore:
    return ClassStore(torch.arange(NUM_CLASSES * PER_CLASS), torch.full((NUM_CLASSES,), PER_CLASS))


@pytest.fixture(scope="module")
def keys() -> Tensor:
    return task_keys(0, "train", first=0, count=EPISODES, device=CPU)


@pytest.fixture(scope="module")
def classes(keys: Tensor) -> Tensor:
    return draw_classes(keys, NUM_CLASSES, WAY)


@pytest.fixture(scope="module")
def episodes(keys: Tensor, store: ClassStore) -> tuple[Tensor, Tensor, Tensor]:
    return drawn(keys, store)


def drawn(keys: Tensor, store: ClassStore) -> tuple[Tensor, Tensor, Tensor]:
    classes = draw_classes(keys, store.num_classes, WAY)
    return draw_episodes(keys, store, classes, shot=SHOT, query_shot=QUERY_SHOT)


@pytest.fixture(scope="module")
def rows(episodes: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(T, W, SHOT + QUERY_SHOT)"""
    support, query, labels = episodes
    query = query.gather(1, labels.argsort(dim=1, stable=True))
    return torch.cat([support.unflatten(1, (WAY, SHOT)), query.unflatten(1, (WAY, QUERY_SHOT))], -1)


def test_classes_are_uniform(classes: Tensor) -> None:
    # Drawn without replacement, so a count varies less than that of independent draws.
    variance = (NUM_CLASSES - WAY) / (NUM_CLASSES - 1)
    assert_uniform(torch.bincount(classes.flatten(), minlength=NUM_CLASSES), variance=variance)


def test_each_label_position_is_uniform_over_classes(classes: Tensor) -> None:
    for position in range(WAY):
        assert_uniform(torch.bincount(classes[:, position], minlength=NUM_CLASSES))


def test_pairs_of_classes_are_uniform(classes: Tensor) -> None:
    counts = pairs(classes[:, 0], classes[:, 1], NUM_CLASSES)
    assert (counts.diagonal() == 0).all()
    assert_uniform(counts[~torch.eye(NUM_CLASSES, dtype=torch.bool)])


def test_the_order_of_labels_is_uniform(classes: Tensor) -> None:
    ranks = classes[:, :4].argsort(dim=1)
    code = (ranks * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = torch.bincount(code)
    assert len(counts[counts > 0]) == 24
    assert_uniform(counts[counts > 0])


def test_the_place_of_a_query_tells_nothing_of_its_label(episodes: tuple[Tensor, Tensor, Tensor]) -> None:
    _, query, labels = episodes
    for place in range(WAY * QUERY_SHOT):
        assert_uniform(torch.bincount(labels[:, place], minlength=WAY))
    assert_uniform(torch.bincount(query[:, 0] % PER_CLASS, minlength=PER_CLASS))
    # two queries share a class as often as when drawn without replacement
    same = (labels[:, 0] == labels[:, 1]).double().mean()
    expected = (QUERY_SHOT - 1) / (WAY * QUERY_SHOT - 1)
    assert abs(same - expected) < 4 * (expected * (1 - expected) / EPISODES) ** 0.5


def test_many_classes_are_uniform(keys: Tensor) -> None:
    drawn = draw_classes(keys[:20_000], 1000, 2)
    assert_uniform(torch.bincount(drawn[:, 0], minlength=1000))


def test_examples_are_uniform_in_every_class(rows: Tensor) -> None:
    for column in (0, SHOT):
        assert_uniform(torch.bincount(rows[:, 0, column], minlength=NUM_CLASSES * PER_CLASS))


def test_pairs_of_support_and_query_examples_are_uniform(rows: Tensor) -> None:
    counts = pairs(rows[:, 0, 0] % PER_CLASS, rows[:, 0, SHOT] % PER_CLASS, PER_CLASS)
    assert_uniform(counts[~torch.eye(PER_CLASS, dtype=torch.bool)])


def test_examples_of_different_classes_are_independent(rows: Tensor) -> None:
    assert_uniform(pairs(rows[:, 0, 0] % PER_CLASS, rows[:, 1, 0] % PER_CLASS, PER_CLASS))


def test_no_example_is_drawn_twice_in_an_episode(rows: Tensor) -> None:
    ordered = rows.flatten(1).sort(dim=1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()


def test_examples_belong_to_the_class_of_their_label(rows: Tensor, classes: Tensor) -> None:
    assert (rows // PER_CLASS == classes[..., None]).all()


def test_neighbouring_tasks_are_uncorrelated(classes: Tensor) -> None:
    for lag in (1, 2, 16):
        assert_uniform(pairs(classes[:-lag:2, 0], classes[lag::2, 0][: len(classes[:-lag:2])], NUM_CLASSES))


@pytest.mark.parametrize(("seed", "split"), [(1, "train"), (2**40, "train"), (0, "val"), (0, "test")])
def test_seeds_and_splits_are_uncorrelated(classes: Tensor, seed: int, split: str) -> None:
    others = draw_classes(task_keys(seed, split, first=0, count=EPISODES, device=CPU), NUM_CLASSES, WAY)
    assert_uniform(pairs(classes[:, 0], others[:, 0], NUM_CLASSES))


def test_classes_and_examples_are_uncorrelated(rows: Tensor, classes: Tensor) -> None:
    # The class at another position, since the first one decides which class the example is of.
    table = torch.bincount(
        classes[:, 1] * PER_CLASS + rows[:, 0, 0] % PER_CLASS, minlength=NUM_CLASSES * PER_CLASS
    )
    assert_uniform(table)


def test_tasks_do_not_depend_on_the_batch_they_come_in(store: ClassStore) -> None:
    together = drawn(task_keys(3, "train", first=0, count=60, device=CPU), store)
    for size in (1, 7):
        for first in range(0, 60, size):
            count = min(size, 60 - first)
            part = drawn(task_keys(3, "train", first=first, count=count, device=CPU), store)
            assert all(
                torch.equal(mine, whole[first : first + count])
                for mine, whole in zip(part, together, strict=True)
            )


def test_blocks_of_keys_change_nothing(monkeypatch: pytest.MonkeyPatch, keys: Tensor) -> None:
    expected = draw_classes(keys[:100], NUM_CLASSES, WAY)
    monkeypatch.setattr(sampling, "BLOCK", 7 * NUM_CLASSES)
    assert torch.equal(draw_classes(keys[:100], NUM_CLASSES, WAY), expected)


def test_draws_stay_as_they_are() -> None:
    # Published results name their tasks by (seed, split, index): a change here changes all of them.
    key = task_keys(1000, "test", first=0, count=2, device=CPU)
    assert key.tolist() == KNOWN_KEYS
    assert draw_classes(key, 300, 5).tolist() == KNOWN_CLASSES


def test_classes_of_unequal_size_are_drawn_within_their_size() -> None:
    size = torch.tensor([3, 20, 5, 9])
    store = ClassStore(torch.arange(int(size.sum())), size)
    key = task_keys(0, "train", first=0, count=20_000, device=CPU)
    rows = draw_examples(key, torch.arange(4).expand(len(key), -1), store, 3)
    assert (store.class_of_row[rows] == torch.arange(4)[:, None]).all()
    for number in range(4):
        first = int(store.first[number])
        assert_uniform(torch.bincount(rows[:, number, 0] - first, minlength=int(size[number])))


def test_a_shuffled_stream_passes_over_everything_once_per_epoch() -> None:
    stream = torch.cat(
        [shuffled(0, "train", first=first, count=8, total=30, device=CPU) for first in range(0, 120, 8)]
    )
    epochs = stream.reshape(4, 30)
    assert (epochs.sort(dim=1).values == torch.arange(30)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert torch.equal(stream[25:70], shuffled(0, "train", first=25, count=45, total=30, device=CPU))


def test_a_shuffled_stream_is_uniform_at_every_place() -> None:
    first = torch.cat(
        [shuffled(seed, "train", first=0, count=2, total=20, device=CPU) for seed in range(3000)]
    ).reshape(-1, 2)
    assert_uniform(torch.bincount(first[:, 0], minlength=20))
    assert_uniform(pairs(first[:, 0], first[:, 1], 20)[~torch.eye(20, dtype=torch.bool)])
