from __future__ import annotations

import pytest
import torch

from metalearn import hashing

WORD = 2**64


def splitmix64(state: int) -> int:
    """Vigna's splitmix64.c in Python integers: one step from `state`, and its output."""
    z = (state + 0x9E3779B97F4A7C15) % WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


def signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word


def test_mix_gives_the_published_first_outputs_of_splitmix64() -> None:
    # The generator's stream from seed 1234567, as Vigna's C code prints it.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    state, found = 1234567, []
    for _ in published:
        found.append(int(hashing.mix(torch.tensor(signed(state)))) % WORD)
        state = (state + 0x9E3779B97F4A7C15) % WORD
    assert found == published


def test_mix_equals_a_reference_in_python_integers() -> None:
    words = [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF, -987654321]
    assert hashing.mix(torch.tensor(words)).tolist() == [signed(splitmix64(word % WORD)) for word in words]


def test_fold_equals_a_reference_and_depends_on_the_order() -> None:
    state = 0
    for word in (7, -3, 2**40):
        state = splitmix64(state ^ splitmix64(word % WORD))
    assert int(hashing.fold(7, -3, 2**40)) == signed(state)
    assert int(hashing.fold(7, torch.tensor(-3), 2**40)) == signed(state)
    assert int(hashing.fold(-3, 7, 2**40)) != signed(state)


def test_choose_gives_different_indices_in_range() -> None:
    drawn = hashing.choose(torch.arange(2000), count=7, size=7)
    assert (drawn.sort(dim=-1).values == torch.arange(7)).all()


def test_choose_of_everything_from_one() -> None:
    assert hashing.choose(torch.arange(3), count=1, size=1).tolist() == [[0], [0], [0]]


def test_keys_refuses_more_items_than_its_index_holds() -> None:
    with pytest.raises(ValueError, match="cannot draw from 9 items; the sampler's limit is 8"):
        hashing.keys(0, count=9, bits=3)


def test_uniform_and_normal_have_their_moments() -> None:
    key = hashing.fold(torch.arange(1000))
    unit, gauss = hashing.uniform(key, (100,)), hashing.normal(key, (100,))
    assert 0 <= unit.min()
    assert unit.max() < 1
    # 10^5 draws: five standard errors of each moment.
    assert abs(unit.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / 316
    assert abs(gauss.mean()) < 5 / 316
    assert abs(gauss.var() - 1) < 5 * 2**0.5 / 316
    assert gauss.abs().max() > 3.5


def test_permutation_is_one_and_differs_between_keys() -> None:
    drawn = hashing.permutation(hashing.fold(torch.arange(50)), (3, 9))
    assert (drawn.sort(dim=-1).values == torch.arange(9)).all()
    assert len({tuple(row) for row in drawn.flatten(0, 1).tolist()}) == 150
