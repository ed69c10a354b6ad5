"""`metalearn bench` as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.bench import command, measure, runner
from metalearn.bench.workloads import WORKLOADS
from metalearn.cli import main as cli

QUICK = ["--repeats", "1", "--threads", "1", "--no-compile", "--no-ranks"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    monkeypatch.setattr(measure, "SIZES", (64,))


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["bench", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_workload_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    code, shown, complaint = answer(capsys, "sinusoid", *QUICK, "--json", str(path))
    assert (code, complaint) == (0, "")
    assert shown.startswith("sinusoid: MAML, MLP 40-40, K=10, 1 step; 25 tasks, median of 1, 1 thread\n")
    found = json.loads(path.read_text())
    assert set(found) == {"machine", "sinusoid"}
    assert {"cpu", "num_cpus", "threads", "torch", "higher", "date"} <= set(found["machine"])
    assert {"systems", "best_plan", "best_peer", "ratio", "gflops", "percent_of_peak"} <= set(
        found["sinusoid"]
    )
    assert [entry.name for entry in path.parent.iterdir()] == ["bench.json"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["sinusiod"],
            "error: metalearn bench sinusiod: there is no such workload; did you mean sinusoid?\n",
        ),
        (
            ["--repeats", "0"],
            "error: 0 is no number of repeats or threads; expected a whole number of at least 1\n",
        ),
        (["--json", "."], "error: --json . is a folder; name a file, as in --json bench.json\n"),
        (
            ["--json", "/dev/null/bench.json"],
            "error: --json /dev/null/bench.json cannot be written: /dev/null is not a folder; choose another "
            "file\n",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert answer(capsys, *words) == (2, "", sentence)


def test_help_lists_the_workloads_without_torch() -> None:
    code = (
        "import sys; from metalearn.cli.main import main; main(['bench', '--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(workload.name in done.stdout for workload in WORKLOADS)


def test_a_workload_that_none_of_our_plans_gets_right_fails_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty: dict[str, Any] = dict.fromkeys(["best_plan", "best_peer", "ratio", "tasks_per_second", "gflops"])
    empty |= {
        "title": "t",
        "tasks": 1,
        "repeats": 1,
        "threads": 1,
        "systems": {},
        "refused": {"loop": "wrong"},
        "time_split_ms_per_task": {},
    }
    monkeypatch.setattr(runner, "take", lambda workload, options: empty)
    code, shown, complaint = answer(capsys, "sinusoid", "anil", "--json", str(tmp_path / "bench.json"))
    assert code == 1
    assert "loop takes no part: wrong" in shown
    assert (
        complaint
        == "error: no plan of ours gave the right result on sinusoid, anil; the table says how far off each "
        "is\n"
    )
    assert set(json.loads((tmp_path / "bench.json").read_text())) == {"machine", "sinusoid", "anil"}


def test_the_curves_are_drawn_beside_the_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    curves = {
        "workload": "w",
        "tasks": {"loop": {4: 1.0, 8: 1.0}},
        "steps": {"loop": {1: 1.0, 2: 2.0}},
        "rise_percent": {"loop": 0.0},
    }
    line = {"loop": {"ms_per_step": 1.0, "ms_besides": 0.0, "largest_deviation_percent": 0.0}}
    monkeypatch.setattr(command.scaling, "curves", lambda workload, options: {**curves, "line": line})
    code, shown, _ = answer(capsys, "scaling", "--json", str(tmp_path / "bench.json"))
    assert code == 0
    assert f"drawn in {tmp_path / 'bench.png'}" in shown
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "bench.json").read_text())["scaling"]["tasks"] == {
        "loop": {"4": 1.0, "8": 1.0}
    }


def test_numbers_are_written_with_six_digits() -> None:
    assert command.rounded({"a": [1.23456789, 3], "b": None, "c": "x"}) == {
        "a": [1.23457, 3],
        "b": None,
        "c": "x",
    }


@pytest.mark.slow
def test_compiled_plans_and_ranks_take_part(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, complaint = answer(capsys, "sinusoid", "--repeats", "1", "--json", str(tmp_path / "bench.json"))
    assert (code, complaint) == (0, "")
    found = json.loads((tmp_path / "bench.json").read_text())["sinusoid"]
    assert {"loop compiled", "vmap chunk 25 compiled"} <= set(found["systems"]), found["refused"]
    assert any(" ranks, " in name for name in found["systems"]) or "ranks" in found["refused"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_here_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, complaint = answer(capsys, "sinusoid", "--device", "cuda")
    assert code == 2
    assert complaint.startswith("error: device=cuda, but PyTorch finds no CUDA device on this machine")
