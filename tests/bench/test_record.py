"""What is written down of a workload, and what a person reads of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metalearn.bench import measure, report, runner
from metalearn.bench.case import Case, Verdict

from .tiny import FAST, tiny

DOCS = Path(__file__).resolve().parents[2] / "docs"
KEYS = {"systems", "best_plan", "best_peer", "ratio", "gflops", "percent_of_peak"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    monkeypatch.setattr(measure, "SIZES", (64,))
    monkeypatch.setattr(runner, "LONGEST_SPLIT", 0.0)


@pytest.mark.parametrize("name", ["sinusoid", "protonet", "evaluation", "sampler_5w1s_15q"])
def test_a_record_holds_what_was_promised_in_json_values(cache: Path, name: str) -> None:
    found = json.loads(json.dumps(runner.take(tiny(name, cache), FAST)))
    assert set(found) >= KEYS
    assert {"ms_per_task", "peak_mb"} <= set(found["systems"]["plain"])
    assert all(system["ms_per_task"] > 0 for system in found["systems"].values())
    assert (found["gflops"] is None) == (found["percent_of_peak"] is None) == name.startswith("sampler")
    ours = {system: entry["ms_per_task"] for system, entry in found["systems"].items() if entry["ours"]}
    peers = {system: entry["ms_per_task"] for system, entry in found["systems"].items() if not entry["ours"]}
    assert found["best_plan"] == min(ours, key=ours.__getitem__)
    assert found["best_peer"] == min(peers, key=peers.__getitem__)
    assert found["ratio"] == pytest.approx(peers[found["best_peer"]] / ours[found["best_plan"]])
    assert found["refused"].keys() >= {"higher"} or name in ("sinusoid", "evaluation")
    assert found["time_split_ms_per_task"]["data"] > 0


def toy(answers: dict[str, Any], plans: tuple[str, ...] = ("loop",)) -> Case:
    """Systems that answer at once; 1 is right."""

    def make(name: str) -> Callable[[], Any]:
        return lambda: lambda: answers[name]

    return Case(
        tasks=2,
        check=lambda answer: (
            Verdict(None, 0.0) if answer == 1 else Verdict(f"its answer is {answer}; expected 1", 0.5)
        ),
        plans={name: make(name) for name in plans},
        peers={name: make(name) for name in answers if name not in plans},
        split=lambda name: lambda: {"data": 0.001, "gradient": 0.002},
    )


def take(case: Case, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(runner, "build_case", lambda *_: case)
    monkeypatch.setattr(runner, "COUNTED", "nobody")
    return runner.take(replace(tiny("sinusoid", Path()), tasks=2), FAST)


class TestToyRecords:
    def test_who_is_wrong_is_not_timed_but_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = take(toy({"loop": 1, "good": 1, "bad": 2}), monkeypatch)
        assert set(found["systems"]) == {"loop", "good"}
        assert found["refused"] == {"bad": "its answer is 2; expected 1"}
        assert found["best_peer"] == "good"
        assert "  bad takes no part: its answer is 2; expected 1" in report.table("toy", found).splitlines()

    def test_a_wrong_plan_of_ours_is_refused_like_anybody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = take(toy({"loop": 1, "vmap": 3, "good": 1}, ("loop", "vmap")), monkeypatch)
        assert found["best_plan"] == "loop"
        assert found["refused"] == {"vmap": "its answer is 3; expected 1"}

    def test_without_a_peer_there_is_no_ratio(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = take(toy({"loop": 1, "bad": 2}), monkeypatch)
        assert (found["best_peer"], found["ratio"]) == (None, None)
        assert "best plan: loop; no peer to compare with" in report.table("toy", found)

    def test_without_a_right_plan_there_is_no_best_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = take(toy({"loop": 2, "good": 1}), monkeypatch)
        assert (found["best_plan"], found["ratio"], found["time_split_ms_per_task"]) == (None, None, {})
        assert "loop takes no part: its answer is 2; expected 1" in report.table("toy", found)


def example() -> dict[str, Any]:
    def system(ms: float, ours: bool) -> dict[str, Any]:
        return {
            "ms_per_task": ms,
            "ms_per_task_range": [ms, 2 * ms],
            "peak_mb": 12.0,
            "error": 1e-6,
            "first_call_seconds": 0.5,
            "ours": ours,
        }

    row = {
        "title": "MAML",
        "tasks": 4,
        "repeats": 5,
        "threads": 2,
        "systems": {"loop": system(8.0, True), "vmap": system(2.0, True), "plain": system(6.0, False)},
        "refused": {"higher": "not installed"},
        "best_plan": "vmap",
        "best_peer": "plain",
        "ratio": 3.0,
        "tasks_per_second": 500.0,
        "gflops": 40.0,
        "matmul_peak_gflops": 80.0,
        "matmul_precision": "TF32",
        "percent_of_peak": 50.0,
        "time_split_ms_per_task": {"data": 0.25, "gradient": 2.0, "update": 0.125},
    }
    machine = {"date": "2026-11-22", "cpu": "Some CPU", "num_cpus": 2, "python": "3.11", "torch": "2.14"}
    return {"machine": {**machine, "higher": None, "torchopt": "0.7", "learn2learn": None}, "tiny": row}


class TestReport:
    def test_the_table_is_sorted_and_compares_with_the_best_peer(self) -> None:
        lines = report.table("tiny", example()["tiny"]).splitlines()
        assert lines[0] == "tiny: MAML; 4 tasks, median of 5, 2 threads"
        assert [line.split("  ")[1] for line in lines[2:5]] == ["vmap", "peer: plain", "loop"]
        assert ["3.00x" in lines[2], "1.00x" in lines[3], "0.75x" in lines[4]] == [True, True, True]
        assert lines[5] == "  higher takes no part: not installed"
        assert lines[6] == (
            "  best plan: vmap, 3.00x as fast as the best peer, plain; 500 tasks/s; 40.0 GFLOP/s, 50% of 80 "
            "(matrix product, TF32); "
            "ms per task: data 0.250 + gradient 2.00 + update 0.125"
        )

    def test_the_document_gets_a_row_per_workload(self) -> None:
        text = report.fill(f"before\n{report.START}\nold\n{report.END}\nafter", example())
        assert "old" not in text
        assert text.startswith("before\n")
        assert text.endswith("\nafter")
        assert "| `tiny` | vmap | 2.00 | plain | 6.00 | **3.00x** | 12.0, 12.0 | 40.0 | 50.0 |" in text
        assert "higher not installed, torchopt 0.7" in text

    def test_a_document_without_marks_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no pair of marks"):
            report.fill("text", example())

    def test_the_tables_of_the_documentation_are_those_of_its_measurements(self) -> None:
        path = DOCS / "performance.json"
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        text = (DOCS / "performance.md").read_text(encoding="utf-8")
        assert report.fill(text, results) == text, (
            "docs/performance.md is out of date; run scripts/performance"
        )
