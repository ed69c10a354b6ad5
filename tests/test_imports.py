"""Imports go one way: cli → verbs → run → build → {engine, analysis} → core; the whole map is ALLOWED below."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import metalearn

ROOT = Path(metalearn.__file__).parent

# What the files of each layer may import of ours, besides their own layer. A layer that is not listed may not exist.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "messages": {"errors"},
    "choices": set(),
    "core": set(),
    "hashing": {"core"},
    "loggers": {"errors"},
    "objectives": {"core"},
    "functional": {"core"},
    "models": {"core"},
    "data": {"core", "objectives", "hashing", "documents", "errors"},
    "algorithms": {"core", "functional", "objectives", "hashing"},
    "engine": {"choices", "core", "hashing", "documents", "loggers", "messages", "errors"},
    "analysis": {"choices", "core", "documents", "errors"},
    "schema": {"errors"},
    "rules": {"schema"},
    "documents": set(),
    "prose": {"schema"},
    "allowlist": {"errors"},
    "references": {"allowlist"},
    "library": {"choices", "documents", "allowlist", "references", "errors"},
    "terminal": {"errors"},
    "saved": {"library", "schema"},
    "config": {"choices", "library", "documents", "prose", "references", "rules", "saved", "schema", "allowlist", "errors"},
    "targets": {"allowlist", "core", "loggers", "errors"},
    "build": {"targets", "library", "engine", "core", "loggers", "messages", "errors"},
    "run": {
        "build",
        "choices",
        "targets",
        "allowlist",
        "documents",
        "config",
        "engine",
        "analysis",
        "core",
        "data",
        "functional",
        "hashing",
        "loggers",
        "launcher",
        "messages",
        "slurm",
        "errors",
    },
    "launcher": set(),
    "slurm": set(),
    "worker": {"run", "launcher"},
    "listing": {"choices", "config", "library", "prose", "schema", "analysis", "errors"},
    "completion": {"choices", "config", "library", "rules", "schema", "bench", "errors"},
    "sweep": {"run", "build", "choices", "config", "saved", "schema", "library", "engine", "analysis", "messages", "slurm", "errors"},
    "bench": {"run", "build", "config", "schema", "engine", "algorithms", "models", "analysis", "core", "errors"},
    "testing": {"engine", "core", "errors"},
    "doctor": {"testing", "run", "build", "config", "library", "engine", "analysis", "data", "core", "documents", "messages", "errors"},
    "verbs": {
        "run",
        "launcher",
        "slurm",
        "sweep",
        "bench",
        "doctor",
        "listing",
        "completion",
        "config",
        "schema",
        "build",
        "analysis",
        "messages",
        "errors",
    },
    "cli": {"verbs", "worker", "terminal", "messages", "schema", "errors"},
    "__main__": {"cli"},
    "__init__": {"run"},
}
MAY_IMPORT_HYDRA = {"config", "library", "targets", "sweep"}
# Reached by --help, ls, completion and configuration errors, which must answer before torch could have been loaded.
NO_TORCH_AT_IMPORT = [
    "metalearn",
    "metalearn.cli",
    "metalearn.config",
    "metalearn.worker",
    "metalearn.errors",
    "metalearn.bench.workloads",
    "metalearn.listing",
    "metalearn.sweep",
    "metalearn.analysis.tables",
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
        # `from metalearn import load` reaches run through the package's lazy door and counts as an import of run.
        target = parts[1] if parts[0] == "metalearn" and len(parts) > 1 else None
        if target is not None and target != layer and target not in ALLOWED[layer]:
            found.append(f"{path.relative_to(ROOT)} imports {name}, but {layer} may only import {sorted(ALLOWED[layer])}")
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
    planted.write_text("import hydra\nfrom metalearn.algorithms.maml import Maml\nfrom ..engine import trainer\nfrom . import sampling\n")
    sentences = violations(planted)
    assert len(sentences) == 3
    assert "imports hydra" in sentences[0]
    assert "metalearn.algorithms.maml.Maml" in sentences[1]
    assert "metalearn.engine.trainer" in sentences[2]


@pytest.mark.parametrize("module", NO_TORCH_AT_IMPORT)
def test_quick_answers_never_import_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
