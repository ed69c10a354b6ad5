"""What the documents promise: their commands run, their code works as it stands, their tables are current."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.cli import main as cli
from metalearn.report.readme import fill, results_page
from tests.frames import rooms
from tests.reliability import report

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = [
    "device=cpu",
    "trainer.outer_steps=2",
    "trainer.meta_batch_size=2",
    "eval.val_episodes=4",
    "eval.episodes=8",
    "data.num_classes=60",
]


def document(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder with its caches inside. What is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known, threads = set(sys.modules), torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def typed(line: str) -> int:
    """The exit code of a printed command line, without a process of its own, which would take seconds."""
    program, *words = shlex.split(line)
    assert program == "metalearn", line
    try:
        return cli.main(words)
    except SystemExit as end:  # --help
        assert isinstance(end.code, int)
        return end.code


def test_readme_tables_are_those_of_the_about_blocks() -> None:
    text = document("README.md")
    assert fill(text, REPOSITORY / "conf") == text, "README.md is out of date; run scripts/readme"


def test_the_page_of_results_is_that_of_the_recipes() -> None:
    current = results_page(REPOSITORY / "conf")
    assert document("docs/results.md") == current, "docs/results.md is out of date; run scripts/readme"


RECIPE = """
about:
  figures:
    - {name: inductive, published: null}
    - {name: 5-way, published: 98.7, headline: true}
  measured:
    cpu:
      seeds: [0, 1, 2]
      steps: 8000
      minutes: 21
      date: 2026-11-22
      commit: 0123456789abcdef
      machine: a machine
      figures:
        5-way: {mean: 96.4, ci95: 0.3, std: 0.2, episodes: 2000}
"""


def test_a_changed_figure_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(RECIPE)
    text = fill(document("README.md"), tmp_path)
    row = "| `mine` | 5-way | 98.7 % | 96.4 ± 0.3 % | 2,000 | 0, 1, 2 | 8,000 | 21 | `metalearn train "
    assert row + "experiment=mine` |" in text
    assert "inductive |" not in text.partition("<!-- /results")[0]
    assert text != document("README.md")
    page = results_page(tmp_path)
    assert "| `mine` | inductive | – | not measured yet | – | – | 0, 1, 2 |" in page
    assert "| 2026-11-22 | 0123456789 | 1 |" in page
    assert "\nMachines: 1: a machine.\n" in page


def test_the_page_of_results_keeps_dirty_and_further_commits_and_says_what_was_typed(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for name, commit, machine in (
        ("a", "ee7c195554-dirty", "one"),
        ("b", "ee7c195554 0123456789abcdef-dirty", "other"),
        ("c", "null", "null"),
    ):
        changed = RECIPE.replace("0123456789abcdef", commit).replace("a machine", machine)
        (tmp_path / "experiment" / f"{name}.yaml").write_text(changed)
    page = results_page(tmp_path)
    assert "| ee7c195554-dirty | 1 |" in page
    assert "| ee7c195554, 0123456789-dirty | 2 |" in page
    assert "| typed before records existed | – |" in page
    assert "Machines: 1: one; 2: other." in page
    assert "nobody types" not in page


def test_ci_runs_the_second_command_of_the_readme() -> None:
    [_, second] = blocks(document("README.md"), "bash")[:2]
    assert second in document(".ci/run")


def test_every_verb_in_the_readme_exists(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [overview] = blocks(document("README.md"), "text")
    verbs = list(dict.fromkeys(line.split()[1] for line in overview.splitlines()))
    assert len(verbs) > 5
    for verb in verbs:
        assert typed(f"metalearn {verb} --help") == 0
        assert f"metalearn {verb}" in capsys.readouterr().out


def test_the_python_lines_of_the_readme_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(f"metalearn train run_dir=RUN_DIR {' '.join(SMALL)}") == 0
    for number, name in enumerate(["a", "b", "c", "d", "e", "unknown_1", "unknown_2"]):
        picture = np.full((105, 105), 255, np.uint8)
        picture[10 * number : 10 * number + 20, 20:80] = 0
        Image.fromarray(picture).save(place / f"{name}.png")
    [lines] = blocks(document("README.md"), "python")
    assert len([line for line in lines.splitlines() if line]) <= 6
    capsys.readouterr()
    exec(compile(lines, "README.md", "exec"), {})
    assert set(ast.literal_eval(capsys.readouterr().out)) <= set("abcde")


@pytest.mark.parametrize("section", ["An algorithm", "A dataset", "A logger"])
def test_what_contributing_shows_works_in_an_empty_folder(
    section: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = document("CONTRIBUTING.md").split(f"\n## {section}\n")[1].split("\n## ")[0].split("\n# ")[0]
    files = re.findall(
        r"^`([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE
    )
    assert len(files) in (2, 4)  # a file of code and a YAML for each thing that is added
    for name, content in files:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    commands = "".join(blocks(text, "bash")).splitlines()
    assert any("metalearn train" in command for command in commands)
    for command in commands:
        assert typed(command) == 0, f"{command}\n{capsys.readouterr()}"
    assert list(place.glob("outputs/*/*/results.json"))


def test_every_fault_has_a_test_that_injects_it() -> None:
    found = report.injecting(REPOSITORY / "tests")
    assert found.keys() == report.FAULTS.keys(), (
        "name its tests test_fault_NN_…, or mark them with pytest.mark.fault(NUMBER)"
    )


def test_every_fault_has_a_fast_test() -> None:
    """As pytest collects them, since some are made slow only then."""
    injected: set[int] = set()

    class Collected:
        def pytest_collection_finish(self, session: pytest.Session) -> None:
            for item in session.items:
                marks = (number for mark in item.iter_markers("fault") for number in mark.args)
                injected.update(report.faults_of(item.name, marks))

    files = sorted(set().union(*report.injecting(REPOSITORY / "tests").values()))
    options = ["--collect-only", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-c", "pyproject.toml"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        assert pytest.main([*options, *files], plugins=[Collected()]) == pytest.ExitCode.OK
    faults = report.rows_of(document("docs/reliability.md"))
    assert injected == faults.keys(), (
        "scripts/check promises to inject every fault; leave one of its tests fast"
    )


def test_the_page_says_how_every_fault_ended() -> None:
    rows, found = report.rows_of(document("docs/reliability.md")), report.injecting(REPOSITORY / "tests")
    assert list(rows) == list(report.FAULTS)
    for number, (fault, injected, survived, compared, files) in rows.items():
        assert (fault, compared) == report.FAULTS[number]
        assert 0 < int(survived) == int(injected)
        assert set(re.findall(r"`([^`]+)`", files)) == found[number], (
            "docs/reliability.md is out of date; run scripts/fault_report"
        )


def test_a_fault_that_was_not_survived_stands_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(
        "import pytest\n@pytest.mark.fault(4, 5)\n@pytest.mark.parametrize('good', [True, False])\n"
        "def test_it(good, record_property):\n    record_property('killed run', 'save')\n    assert good\n"
        "def test_fault_06_is_not_here():\n    pytest.skip('not here')\n"
        "def test_of_something_else():\n    assert False\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = fault(number, ...)\n")
    tally = report.Tally()
    pytest.main(
        ["-q", "-p", "no:cacheprovider", "-c", str(tmp_path / "pytest.ini"), str(tmp_path)], plugins=[tally]
    )
    page = report.fill(f"before\n{report.START}\n{report.END}\nafter\n", tally, "here")
    rows = report.rows_of(page)
    assert [rows[number][1:3] for number in (4, 5, 6, 25)] == [["2", "1"], ["2", "1"], ["0", "0"], ["0", "0"]]
    assert "| run | 0 | 0 | 2 | 0 | 0 | 2 |" in page
    assert (
        "Not survived:\n\n- `test_one.py::test_it[False]`\n\nLeft out on this machine:\n\n- "
        "`test_one.py::test_fault_06_is_not_here`\n" in page
    )
    assert not tally.complete()
    assert report.injecting(tmp_path) == {number: {f"{tmp_path.name}/test_one.py"} for number in (4, 5, 6)}


def test_the_map_of_the_house_names_what_there_is() -> None:
    text = document("docs/architecture.md")
    table = text[text.index("## The map") : text.index("## Who may import whom")]
    first_cells = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))
    named = set(re.findall(r"`([a-z_]+)(?:/|\.py)`", first_cells))
    assert named == {*rooms(), "conf"} - {"__init__", "__main__"}
    package = REPOSITORY / "metalearn"
    for path in re.findall(r"`((?:[a-z_]+/)+[a-zA-Z_]+\.py)`", text):
        assert (package / path).is_file() or (REPOSITORY / path).is_file(), path
