"""The instruments themselves: turns, memory, operations and the machine's peak."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from metalearn.bench import measure


def test_systems_take_turns_and_every_round_begins_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    calls: list[str] = []
    works = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = measure.interleaved(works, repeats=3)
    assert "".join(calls[3:]) == "abc" + "bca" + "cab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_short_work_is_repeated_until_it_can_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SHORTEST", 0.05)
    calls = []
    seconds = measure.interleaved({"nap": lambda: (calls.append(1), time.sleep(0.01))}, repeats=1)
    assert 2 <= len(calls) <= 7
    assert 0.009 < seconds["nap"][0] < 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="the highest resident size can be reset on Linux only")
def test_peak_memory_is_that_of_the_work_and_forgets_what_was_before() -> None:
    def use(megabytes: int) -> None:
        torch.ones(megabytes * 10**6, dtype=torch.uint8)

    measure.peak_mb(lambda: use(200))
    peak = measure.peak_mb(lambda: use(50))
    if peak is None:
        pytest.skip("this sandbox does not let a process reset its highest resident size")
    assert 45 < peak < 70


def test_a_matrix_product_has_two_operations_per_entry_and_term() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert measure.flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_the_peak_of_the_machine_is_that_of_the_fastest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SIZES", (10, 20))
    monkeypatch.setattr(measure, "seconds_of", lambda work: 1e-6)
    assert measure.matmul_peak() == pytest.approx(2 * 20**3 / 1e-6 / 1e9)
