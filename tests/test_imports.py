"""Imports go one way: cli → sweep, bench → run → distributed, inference, doctor → build → engine, config; the
map is ALLOWED.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import metalearn

ROOT = Path(metalearn.__file__).parent

# What the files of each layer may import of ours, besides their own layer. A layer that is not listed may not
# exist.
ALLOWED: dict[str, set[str]] = {
    # words and tools that everything may lean on
    "errors": set(),
    "files": set(),
    "fault_injection": set(),
    "core": set(),
    "hashing": {"core"},
    "objectives": {"core"},
    "functional": {"core"},
    # what a user adds to
    "models": {"core"},
    "loggers": {"errors"},
    "algorithms": {"core", "functional", "objectives", "hashing"},
    "data": {"core", "hashing", "files", "objectives", "errors"},
    # what a run leaves, and what is made of it for people
    "rundir": {"files", "loggers", "fault_injection", "errors"},
    "report": {"rundir", "core", "errors"},
    # the loops
    "engine": {"rundir", "core", "files", "fault_injection", "hashing", "errors"},
    "testing": {"engine", "core", "errors"},
    # from words to objects
    "config": {"rundir", "files", "errors"},
    "build": {"engine", "config", "rundir", "loggers", "data", "core", "files", "errors"},
    "distributed": {"build", "engine", "rundir", "core", "fault_injection", "errors"},
    "inference": {"build", "engine", "config", "rundir", "data", "core", "errors"},
    "doctor": {
        "testing",
        "build",
        "engine",
        "config",
        "rundir",
        "data",
        "core",
        "files",
        "errors",
    },
    # whole runs, and many of them
    "run": {
        "distributed",
        "build",
        "report",
        "engine",
        "config",
        "rundir",
        "core",
        "fault_injection",
        "files",
        "errors",
    },
    "sweep": {"run", "build", "report", "config", "rundir", "files", "errors"},
    "bench": {
        "files",
        "run",
        "distributed",
        "build",
        "report",
        "engine",
        "config",
        "rundir",
        "algorithms",
        "models",
        "core",
        "errors",
    },
    # the doors
    "cli": {
        "sweep",
        "bench",
        "run",
        "doctor",
        "distributed",
        "build",
        "report",
        "config",
        "rundir",
        "errors",
    },
    "__main__": {"cli"},
    "__init__": {"inference"},
}
MAY_IMPORT_HYDRA = {"config", "build", "sweep"}
# Reached by --help, ls, completion and configuration errors, which must answer before torch could have been
# loaded.
NO_TORCH_AT_IMPORT = [
    "metalearn",
    "metalearn.bench.workloads",
    "metalearn.rundir.choices",
    "metalearn.cli.main",
    *(
        f"metalearn.{path.parent.name}.{path.stem}"
        for room in ("cli", "config")
        for path in sorted((ROOT / room).glob("[a-z]*.py"))
    ),
    "metalearn.distributed.entry",
    "metalearn.errors",
    "metalearn.files",
    "metalearn.report.tables",
    "metalearn.run.slurm",
    "metalearn.rundir.reader",
    "metalearn.sweep.multirun",
    "metalearn.sweep.table",
]


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def layer_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything that a file imports, at any depth."""
    package = ["metalearn", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def violations(path: Path) -> list[str]:
    """Sentences about every import of this file that goes against the direction."""
    layer = layer_of(path)
    if layer not in ALLOWED:
        return [f"{path.name} belongs to no layer of the house; add it to ALLOWED with what it may import"]
    found = []
    for name in imported(path):
        parts = name.split(".")
        # `from metalearn import load` reaches run through the package's lazy door and counts as an import of
        # run.
        target = parts[1] if parts[0] == "metalearn" and len(parts) > 1 else None
        if target is not None and target != layer and target not in ALLOWED[layer]:
            found.append(
                f"{path.relative_to(ROOT)} imports {name}, but {layer} may only import "
                f"{sorted(ALLOWED[layer])}"
            )
        if parts[0] in {"hydra", "omegaconf"} and layer not in MAY_IMPORT_HYDRA:
            found.append(f"{path.relative_to(ROOT)} imports {name}; only {sorted(MAY_IMPORT_HYDRA)} may")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    assert violations(path) == []


def test_an_import_against_the_direction_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    planted = tmp_path / "data" / "planted.py"
    planted.write_text(
        "import hydra\nfrom metalearn.algorithms.maml import Maml\nfrom ..engine import trainer\nfrom . "
        "import sampling\n"
    )
    sentences = violations(planted)
    assert len(sentences) == 3
    assert "imports hydra" in sentences[0]
    assert "metalearn.algorithms.maml.Maml" in sentences[1]
    assert "metalearn.engine.trainer" in sentences[2]


def circles(edges: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The imports between rooms that lie on a circle: from each of these pairs, the second room leads back to
    the first.
    """

    def reached(room: str) -> set[str]:
        found: set[str] = set()
        left = [room]
        while left:
            new = edges.get(left.pop(), set()) - found
            found |= new
            left += new
        return found

    return {(room, other) for room, others in edges.items() for other in others if room in reached(other)}


def imports_between_rooms() -> dict[str, set[str]]:
    """What the files of each room import of the other rooms."""
    edges: dict[str, set[str]] = {}
    for path in modules():
        room = layer_of(path)
        targets = {name.split(".")[1] for name in imported(path) if name.startswith("metalearn.")}
        edges.setdefault(room, set()).update(targets - {room})
    return edges


def test_no_rooms_import_each_other_in_a_circle() -> None:
    assert circles(imports_between_rooms()) == set()


def test_a_circle_of_rooms_is_found() -> None:
    edges = {"cli": {"run"}, "run": {"build"}, "build": {"engine"}, "engine": {"run"}}
    assert circles(edges) == {("run", "build"), ("build", "engine"), ("engine", "run")}


@pytest.mark.parametrize("module", NO_TORCH_AT_IMPORT)
def test_quick_answers_never_import_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_one_file_knows_where_hydra_keeps_what() -> None:
    """What is not public moves between releases."""
    public = {"hydra.errors", "hydra.utils"}
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.partition(".")[0] == "hydra" and name not in public for name in names):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"config/hydra_parts.py"}
