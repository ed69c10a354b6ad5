"""The instruments themselves: turns, memory, operations and the machine's peak."""

from __future__ import annotations

import sys
import time
from typing import Any

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


@pytest.mark.parametrize("tf32", [True, False])
def test_the_peak_of_a_gpu_is_that_of_the_precision_of_its_convolutions(
    tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without values, which is no CPU either."""
    met = []

    def seconds_of(work: Any) -> float:
        met.append(torch.backends.cuda.matmul.allow_tf32)
        return 1e-6

    monkeypatch.setattr(measure, "seconds_of", seconds_of)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32, not tf32
        measure.matmul_peak(torch.device("meta"))
        after = torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    assert set(met) == {tf32}
    assert after == (not tf32), "as it was before"


def test_the_precision_of_a_cpu_is_float32_and_of_a_gpu_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert measure.matmul_precision() == "float32"
    for capability, tf32, precision in (
        ((8, 0), True, "TF32"),
        ((8, 0), False, "float32"),
        ((7, 5), True, "float32"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        monkeypatch.setattr(measure, "convolutions_in_tf32", lambda found=tf32: found)
        assert measure.matmul_precision(cuda) == precision
