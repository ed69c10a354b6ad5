"""Synthetic ratings: a rating source whose truth is known, for methods that adapt to a user.

rating = mean + bias of the user + bias of the item + taste · character + noise, clipped to 1…5. Attributes
(age, occupation, genre, …) explain part of tastes, characters and biases, as in MeLU's MovieLens (Lee et al.
2019); the rest of a user only shows in that user's ratings. A task is one user, and users of different splits
are different people. Shape letters: T tasks, U users, I items, R ratings per user (padded), K latent factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core import (
    SPLITS,
    Examples,
    InputSpec,
    Member,
    Members,
    NamedTask,
    Row,
    Source,
    Split,
    TaskBatch,
    TaskSpec,
)
from metalearn.data.files.cache import digest
from metalearn.data.partition import split_sizes
from metalearn.data.sampling import shuffled, task_keys
from metalearn.errors import ConfigError, DataError
from metalearn.hashing import choose, fold, normal, permutation, uniform
from metalearn.objectives import Rating

USER_ATTRIBUTES = {"age": 7, "gender": 2, "occupation": 20}
ITEM_ATTRIBUTES = {"genre": 18, "decade": 8, "director": 40}
FRACTIONS = (0.6, 0.1, 0.3)
FACTORS = 4
MEAN = 3.4
# Share of the variance of tastes and biases that attributes explain: little of a user, much of an item.
USER_EXPLAINED, ITEM_EXPLAINED = 0.25, 0.8
# standard deviations in rating units; TASTE of each factor's product
USER_BIAS, ITEM_BIAS, TASTE = (
    0.5,
    0.45,
    0.4,
)
RATING_DRAW = -1


class World(NamedTuple):
    """All that was ever rated. item and rating: (U, R), of which the first num_ratings (U,) of a row are
    real.
    """

    user_codes: Tensor  # (U, attributes)
    item_codes: Tensor  # (I, attributes)
    item: Tensor
    rating: Tensor
    num_ratings: Tensor


class SyntheticRatings(Source):
    """Users with min_ratings…max_ratings ratings; query_shot of them are the query, all the others the
    support.
    """

    name = "synthetic_ratings"
    owner_word, item_word = "user", "item"

    def __init__(
        self,
        *,
        device: torch.device,
        num_users: int,
        num_items: int,
        min_ratings: int,
        max_ratings: int,
        query_shot: int,
        seed: int,
        noise: float,
    ) -> None:
        self.device = torch.device(device)
        self.num_users, self.num_items = num_users, num_items
        self.min_ratings, self.max_ratings, self.query_shot = min_ratings, max_ratings, query_shot
        self.seed, self.noise = seed, noise
        problems = self._problems()
        if problems:
            raise ConfigError(problems)

    def _problems(self) -> list[str]:
        found = []
        if self.query_shot >= self.min_ratings:
            found.append(
                f"data.query_shot={self.query_shot} leaves nothing to adapt on for users with "
                f"data.min_ratings={self.min_ratings}; "
                "lower data.query_shot or raise data.min_ratings"
            )
        if self.max_ratings < self.min_ratings:
            found.append(f"data.max_ratings={self.max_ratings} is below data.min_ratings={self.min_ratings}")
        if self.max_ratings > self.num_items:
            found.append(
                f"data.max_ratings={self.max_ratings} but there are data.num_items={self.num_items} to rate; "
                "raise data.num_items"
            )
        return found

    def prepare(self) -> None:
        """Make the users and items now rather than on first use; nothing is stored."""
        _ = self._world

    def spec(self, split: Split) -> TaskSpec:
        return TaskSpec(
            kind="rating",
            objective=Rating(),
            num_outputs=1,
            input_spec={
                "user": InputSpec((len(USER_ATTRIBUTES),), sum(USER_ATTRIBUTES.values())),
                "item": InputSpec((len(ITEM_ATTRIBUTES),), sum(ITEM_ATTRIBUTES.values())),
            },
            support_size=self.max_ratings - self.query_shot,
            query_size=self.query_shot,
            ragged=self.min_ratings < self.max_ratings,
        )

    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        """Users come in shuffled passes over the split, so that no user is met twice in a pass."""
        key = task_keys(seed, split, first=first, count=count, device=self.device)
        user = self._users(split, seed, first, count)
        order, real = self._order(key, user)
        cut = self.query_shot
        return TaskBatch(
            support=self._rows(user, order[:, cut:], real[:, cut:]),
            query=self._rows(user, order[:, :cut], real[:, :cut]),
            key=key,
        )

    def named(self, split: Split, *, seed: int, first: int, count: int) -> list[NamedTask]:
        world = self._world
        key = task_keys(seed, split, first=first, count=count, device=self.device)
        user = self._users(split, seed, first, count)
        order, real = self._order(key, user)
        items = world.item[user[:, None], order].tolist()
        ratings = world.rating[user[:, None], order]
        tasks = []
        for who, *rated in zip(user.tolist(), items, ratings, real.tolist(), strict=True):
            rows = [
                Row(f"seed={self.seed}/user={who}", item, decimal(rating)) if kept else None
                for item, rating, kept in zip(*rated, strict=True)
            ]
            query, support = (
                [row for row in side if row is not None]
                for side in (rows[: self.query_shot], rows[self.query_shot :])
            )
            tasks.append(NamedTask(support, query))
        return tasks

    def recognised(self, row: Row, beside: Path) -> Row:
        """The rating is that of the data, whatever the file says."""
        number = row.owner.removeprefix(f"seed={self.seed}/user=")
        if not number.isdecimal() or int(number) >= self.num_users:
            raise DataError(
                f"user {row.owner!r} is not in data={self.name}, which has seed={self.seed}/user=0 to "
                f"user={self.num_users - 1}; the file is of other data"
            )
        rated = self._rated(int(number))
        if not str(row.item).isdecimal() or int(row.item) not in rated:
            raise DataError(f"user {row.owner!r} of data={self.name} has not rated item {row.item!r}")
        rating = self._world.rating[int(number), rated.index(int(row.item))]
        return row._replace(item=int(row.item), label=decimal(rating))

    def gathered(self, parts: Sequence[Sequence[Row]]) -> Examples:
        width = max(map(len, parts))
        order = torch.zeros(len(parts), width, dtype=torch.int64)
        real = torch.zeros(len(parts), width, dtype=torch.bool)
        user = torch.tensor([int(rows[0].owner.rpartition("=")[2]) for rows in parts])
        for task, rows in enumerate(parts):
            if len({row.owner for row in rows}) > 1:
                raise DataError(f"a task is one user's, but one names {rows[0].owner!r} and others")
            rated = self._rated(int(user[task]))
            order[task, : len(rows)] = torch.tensor([rated.index(int(row.item)) for row in rows])
            real[task, : len(rows)] = True
        return self._rows(user.to(self.device), order.to(self.device), real.to(self.device))

    def groups(self) -> tuple[str, Mapping[str, str]]:
        """By how much a user has rated."""
        counts = self._world.num_ratings.tolist()
        return "ratings", {
            f"seed={self.seed}/user={user}": f"{count // 10 * 10}-{count // 10 * 10 + 9}"
            for user, count in enumerate(counts)
        }

    def _rated(self, user: int) -> list[int]:
        """Items in the order of a user's ratings."""
        rated: list[int] = self._world.item[user, : int(self._world.num_ratings[user])].tolist()
        return rated

    def _users(self, split: Split, seed: int, first: int, count: int) -> Tensor:
        total = self.num_tasks(split)
        user = shuffled(seed, split, first=first, count=count, total=total, device=self.device)
        return self._first_user(split) + user

    def _order(self, key: Tensor, user: Tensor) -> tuple[Tensor, Tensor]:
        """Real ratings in random order, then padding: the query takes the first, the support the rest."""
        num_ratings = self._world.num_ratings[user, None]
        random = permutation(fold(key, RATING_DRAW), (self.max_ratings,))
        order = random.gather(1, (random >= num_ratings).to(torch.int8).argsort(dim=1, stable=True))
        return order, torch.arange(self.max_ratings, device=self.device) < num_ratings

    def num_tasks(self, split: Split) -> int:
        return split_sizes(self.num_users, FRACTIONS)[split]

    def members(self, split: Split) -> Members:
        """Users by seed and number alone, from which attributes and taste follow, whatever was rated and with
        how much noise.
        """
        first = self._first_user(split)
        return [
            Member(self.name, f"seed={self.seed}/user={number}")
            for number in range(first, first + self.num_tasks(split))
        ]

    def protocol(self, split: Split) -> dict[str, Any]:
        sizes = {"way": None, "shot": None, "query_shot": self.query_shot}
        ratings = {
            "min_ratings": self.min_ratings,
            "max_ratings": self.max_ratings,
            "num_users": self.num_tasks(split),
        }
        facts = {"partition": "users", "augmentation": "none", "data_seed": self.seed, "noise": self.noise}
        return {"data": self.name, "split": split, **sizes, **ratings, **facts}

    def fingerprint(self) -> str:
        return digest(
            {name: tensor.cpu() for name, tensor in self._world._asdict().items()},
            {"query_shot": self.query_shot},
        )

    @cached_property
    def _world(self) -> World:
        world = make_world(
            self.num_users, self.num_items, (self.min_ratings, self.max_ratings), self.seed, self.noise
        )
        return World(*(tensor.to(self.device) for tensor in world))

    def _first_user(self, split: Split) -> int:
        return sum(self.num_tasks(earlier) for earlier in SPLITS[: SPLITS.index(split)])

    def _rows(self, user: Tensor, order: Tensor, real: Tensor) -> Examples:
        """Ratings number `order` (T, n) of users (T,). Padding is an item of its own, rated 0, which the mask
        hides.
        """
        world = self._world
        item = world.item[user[:, None], order]
        x = {
            "user": world.user_codes[user][:, None].expand(-1, order.shape[1], -1).contiguous(),
            "item": world.item_codes[item],
        }
        y = (world.rating[user[:, None], order] * real).to(torch.get_default_dtype())
        return Examples(x, y[..., None], real)


def decimal(rating: Tensor) -> float:
    """The shortest decimal that is this number in float32."""
    return float(str(rating.float().numpy()))


def make_world(num_users: int, num_items: int, ratings: tuple[int, int], seed: int, noise: float) -> World:
    """Users, items and ratings as a pure function of the arguments, on the CPU."""
    users, items = fold(seed, 1, torch.arange(num_users)), fold(seed, 2, torch.arange(num_items))
    user_codes, user_bias, taste = _population(users, fold(seed, 3), USER_ATTRIBUTES, USER_EXPLAINED)
    item_codes, item_bias, character = _population(items, fold(seed, 4), ITEM_ATTRIBUTES, ITEM_EXPLAINED)
    low, high = ratings
    num_ratings = low + (uniform(fold(users, 2), ()) * (high - low + 1)).long()
    item = choose(users, 3, count=num_items, size=high)
    liking = (taste[:, None] * character[item]).sum(-1) * TASTE
    error = normal(fold(users, 4), (high,)) * noise
    rating = MEAN + USER_BIAS * user_bias[:, None] + ITEM_BIAS * item_bias[item] + liking + error
    return World(user_codes, item_codes, item, rating.clamp(1, 5), num_ratings)


def _population(
    key: Tensor, group: Tensor, attributes: Mapping[str, int], explained: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Attribute codes (n, A), and bias (n,) and factors (n, K) of unit variance, of which attributes explain
    a share.

    Codes of different attributes do not overlap, so that one embedding table serves them all.
    """
    sizes = torch.tensor(list(attributes.values()))
    codes = (uniform(fold(key, 0), (len(sizes),)) * sizes).long() + sizes.cumsum(0) - sizes
    effect = normal(fold(group, torch.arange(int(sizes.sum()))), (1 + FACTORS,))
    shared = effect[codes].sum(1) / len(sizes) ** 0.5
    own = normal(fold(key, 1), (1 + FACTORS,))
    values = explained**0.5 * shared + (1 - explained) ** 0.5 * own
    return codes, values[:, 0], values[:, 1:]
