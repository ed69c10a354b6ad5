"""The wheel, not the checkout: it is complete, and a stranger's folder is enough to train from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = ["pyproject.toml", "README.md", "LICENSE", "metalearn", "conf"]


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_subpackage_is_listed() -> None:
    found = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for path in (REPOSITORY / "metalearn").rglob("__init__.py")
    }
    assert set(project()["tool"]["setuptools"]["packages"]) == found | {"metalearn.conf"}


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in (REPOSITORY / "metalearn").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_dependencies_are_floors_but_for_hydra() -> None:
    dependencies = project()["project"]["dependencies"]
    assert [line for line in dependencies if "<" in line or "==" in line] == ["hydra-core>=1.3.8,<1.5"]
    assert "torch>=2.10" in dependencies  # older ones load a checkpoint unsafely
    assert project()["project"]["requires-python"] == ">=3.10,<3.14"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but what the wheel installs."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    source.mkdir()
    for name in SOURCES:  # a copy, so that no build folder of an earlier version can lend its files
        path = REPOSITORY / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, source / name, ignore=ignore) if path.is_dir() else shutil.copy(path, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", root, source], check=True)
    [wheel] = root.glob("metalearn_runner-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", root / "site", wheel], check=True)
    return root / "site"


def run(site: Path, cwd: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Python with the installed wheel and the dependencies, but without .pth files: an editable install stays
    out.
    """
    paths = [str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-S", *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_every_yaml(site: Path) -> None:
    expected = {path.relative_to(REPOSITORY / "conf") for path in (REPOSITORY / "conf").rglob("*.yaml")}
    assert {
        path.relative_to(site / "metalearn" / "conf")
        for path in (site / "metalearn" / "conf").rglob("*.yaml")
    } == expected
    assert Path("train.yaml") in expected


def test_the_wheel_holds_every_template(site: Path) -> None:
    folder = Path("metalearn") / "report" / "templates"
    expected = {path.name for path in (REPOSITORY / folder).glob("*.html")}
    assert {path.name for path in (site / folder).iterdir()} == expected
    assert {"page.html", "report.html"} <= expected


def test_the_wheel_is_what_gets_imported(site: Path, tmp_path: Path) -> None:
    done = run(
        site,
        tmp_path,
        "-c",
        "import metalearn, metalearn.conf; print(metalearn.__file__); print(metalearn.conf.__file__)",
    )
    package, conf = (Path(line) for line in done.stdout.split())
    assert package.is_relative_to(site)
    assert conf.is_relative_to(site)


def test_the_installed_wheel_trains_two_steps_outside_the_clone(site: Path, tmp_path: Path) -> None:
    words = [
        "trainer.outer_steps=2",
        "trainer.meta_batch_size=2",
        "eval.val_episodes=4",
        "eval.episodes=8",
        "data.num_classes=60",
    ]
    done = run(
        site,
        tmp_path,
        "-m",
        "metalearn",
        "train",
        "device=cpu",
        "run_dir=run",
        f"data.cache_dir={tmp_path / 'cache'}",
        *words,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "results.json").exists()


def test_the_installed_command_answers(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, site / "bin" / "metalearn", "ls", "algo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "maml" in done.stdout
