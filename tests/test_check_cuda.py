"""`scripts/check_cuda`, as far as it can be tried where there is no GPU."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "check_cuda"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("check_cuda", str(SCRIPT))
    spec = importlib.util.spec_from_loader("check_cuda", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_first_line_names_what_is_missing_and_exit_is_2(tmp_path: Path) -> None:
    """Without its site packages, Python has none of them."""
    command = [sys.executable, "-I", "-S", "-B", SCRIPT, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    first = (tmp_path / "out" / "check_cuda.log").read_text().splitlines()[0]
    assert first == done.stdout.splitlines()[0]
    assert first.startswith("missing: torch, torchvision, numpy, pillow, hydra-core, omegaconf, ")
    assert first.endswith("; peers that are not installed: higher, torchopt, learn2learn")
    found = json.loads((tmp_path / "out" / "check_cuda.json").read_text())
    assert "hydra-core" in found["missing"]
    assert found["parts"] == {}


def packages(site: Path, **modules: str) -> Path:
    """A folder of distributions: {module: version, or what importing it does}."""
    for name, text in modules.items():
        (site / name).mkdir(parents=True)
        version = text if text[0].isdigit() else "1.0"
        (site / name / "__init__.py").write_text("" if version == text else text)
        (site / f"{name}-{version}.dist-info").mkdir()
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    return site


def test_what_cannot_be_imported_or_has_a_wrong_version_is_missing(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {"exits": "import os; os._exit(7)"}
    lacks = {"lacks": "import no_such_module_anywhere"}
    site = packages(tmp_path / "site", fine="1.10", early="1.9.9", late="2.0", **lacks, **ends)
    names = ("fine", "early", "late", "lacks", "absent_thing", "exits")
    monkeypatch.setattr(script, "NEEDED", {name: name for name in names})
    monkeypatch.setattr(script, "bounds", lambda: {"fine": ((1, 10), None), "early": ((1, 10), None)})
    assert script.Check(tmp_path, None, cpu=True).missing() == [
        "early >= 1.10 (found 1.9.9)",
        "lacks (ModuleNotFoundError: No module named 'no_such_module_anywhere')",
        "absent_thing",
        "exits (importing it ends Python with exit code 7)",
    ]
    monkeypatch.setattr(script, "NEEDED", {"late": "late"})
    monkeypatch.setattr(script, "bounds", lambda: {"late": ((1, 10), (2,))})
    assert script.Check(tmp_path, None, cpu=True).missing() == ["late >= 1.10, < 2 (found 2.0)"]
    assert site.exists()


def test_the_bounds_are_those_of_the_project(script: ModuleType) -> None:
    bounds = script.bounds()
    assert bounds["hydra-core"] == ((1, 3, 8), (1, 5))
    assert bounds["pytest"][1] is None
    assert bounds["torch"] == (script.OLDEST_TORCH, None)
    assert bounds.keys() <= script.NEEDED.keys()


def test_a_folder_of_wheels_that_is_not_there_is_refused(script: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-B", SCRIPT, tmp_path / "out", "--wheels", tmp_path / "no"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        f"--wheels {tmp_path / 'no'} is no folder; fill it with: scripts/check_cuda --wheels" in done.stderr
    )
    assert not (tmp_path / "out").exists()


def test_wheels_of_what_is_missing_are_unpacked(script: ModuleType, tmp_path: Path) -> None:
    here = f"cp3{sys.version_info.minor}"
    for name, module in (
        ("absent_thing-1.0-py3-none-any", "absent_thing/__init__.py"),
        ("pytest-99-py3-none-any", "pytest/__init__.py"),  # which is here
        ("other_python-1-cp39-cp39-manylinux_2_17_x86_64", "other_python.py"),
        ("metalearn_runner-0.2.0-py3-none-any", "metalearn/core.py"),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as wheel:
            wheel.writestr(module, "")
            wheel.writestr(f"{name.partition('-py')[0]}.dist-info/METADATA", "")
            wheel.writestr("../escaped.py", "")
    done = script.unpack(tmp_path, tmp_path / "site")
    assert done == ["absent_thing-1.0-py3-none-any.whl", "metalearn_runner-0.2.0-py3-none-any.whl"]
    assert (tmp_path / "site" / "absent_thing" / "__init__.py").exists()
    assert not (tmp_path / "site" / "metalearn").exists()  # the checkout is what is tried
    assert not (tmp_path / "escaped.py").exists()
    assert script.fits(f"x-1-{here}-{here}-manylinux_2_28_x86_64") == (script.platform.machine() == "x86_64")
    assert script.fits("x-1-cp310-abi3-any")
    assert not script.fits("x-1-py2-none-any")


def test_a_part_that_takes_too_long_is_stopped_and_said(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "LEAST", 0.5)
    check = script.Check(tmp_path, None, cpu=True)
    check.part("hangs", ["-c", "print('begun', flush=True); import time; time.sleep(60)"], limit=1)
    check.part("fails", ["-c", "import sys; sys.exit(3)"], limit=30)
    monkeypatch.setattr(script, "LIMIT", time.monotonic() - check.began)
    check.part("is late", ["-c", ""], limit=30)
    parts = json.loads((tmp_path / "check_cuda.json").read_text())["parts"]
    ends = {name: (part["exit_code"], part["stopped"]) for name, part in parts.items()}
    assert ends == {"hangs": (None, True), "fails": (3, False), "is late": (None, True)}
    assert "begun" in parts["hangs"]["tail"]
    assert "no time is left for it" in parts["is late"]["tail"]


def test_tests_are_counted_as_they_end(script: ModuleType) -> None:
    text = "tests/a.py::x PASSED [ 1%]\n[gw3] [ 5%] FAILED tests/a.py::y[1] \n[gw0] PASSED tests/a.py::z\n"
    text += "tests/b.py::u SKIPPED (needs…) [ 9%]\n"
    assert script.outcomes(text) == {"passed": 2, "skipped": 1, "failed": ["tests/a.py::y[1]"]}


def test_the_table_has_a_row_for_each_system(script: ModuleType) -> None:
    systems = {
        "loop": {"ms_per_task": 2.0, "error": None, "ours": True},
        "higher": {"ms_per_task": 4.0, "error": 1e-6, "ours": False},
    }
    record = {"systems": systems, "mflop_per_task": 10.0, "matmul_peak_gflops": 100.0}
    record["matmul_precision"] = "TF32"
    shown = script.table({"benchmark": {"sinusoid": {**record, "refused": {"torchopt": "broken"}}}})
    assert "| `sinusoid` | loop | 2 | 500 | 5.0 (TF32) | – |" in shown
    assert "| `sinusoid` | peer: higher | 4 | 250 | 2.5 (TF32) | 1e-06 |" in shown
    assert "- `sinusoid`: torchopt takes no part: broken" in shown
