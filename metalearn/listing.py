"""What exists, for people: the choices of a group, the YAML behind a name, the runs in a folder. Returns text."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from metalearn.analysis.runfiles import is_locked, names_of, read_json, shown
from metalearn.analysis.tables import grid, published
from metalearn.choices import NAMED_IN_RESULTS
from metalearn.config import compose
from metalearn.errors import ConfigError, raise_if
from metalearn.library import GROUPS, Library
from metalearn.prose import about_problems
from metalearn.schema import lookup


def group(name: str, config_dir: str | None = None) -> str:
    """One line per choice: name, what it is, paper, published and measured figure."""
    library = Library(config_dir)
    rows = [[name, "what it is", "paper", "published", "measured"]]
    for option in library.options(name):
        about = library.read(name, option).get("about") or {}
        raise_if(f"{library.path(name, option)}: {problem}" for problem in about_problems({"about": about}))
        paper = str(about.get("paper", ""))
        rows.append([option, about.get("title") or first_comment(library.path(name, option)), paper, *figures(about)])
    used = [i for i in range(5) if i < 2 or any(row[i] for row in rows[1:])]
    return grid([[row[i] for i in used] for row in rows])


def first_comment(path: Path) -> str:
    """What a YAML says about itself in its first comment."""
    comments = (line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ") and not line.startswith("# @"))
    return next(comments, "#")[1:].strip().rstrip(".")


def figures(about: dict[str, Any]) -> tuple[str, str]:
    """The published and the measured figure in few words: of a recipe its first row, of an algorithm its one figure."""
    if about.get("figures"):
        first = about["figures"][0]
        measured = "" if first.get("measured") is None else f"{first['measured']} ± {first.get('ci95')}"
        return ("" if first.get("published") is None else f"{first['published']} {first['name']}"), measured
    return (published(about["published"]) if about.get("published") else ""), ""


def show(name: str, config_dir: str | None = None) -> str:
    """The YAML of a choice with its comments; references are replaced by the values they have by default."""
    library = Library(config_dir)
    if name in ("train", "config"):
        return (library.folders[0] / "train.yaml").read_text(encoding="utf-8")
    group_name, option = find(name, library)
    library.read(group_name, option)  # says what is wrong with a file that cannot be shown
    text = library.path(group_name, option).read_text(encoding="utf-8")
    if group_name == "experiment":
        whole = as_yaml(compose([f"experiment={option}"], config_dir))
        return f"# experiment={option}\n{text}\n# and the whole configuration that it makes\n{whole}"
    tree = library.load([f"{group_name}={option}"]) if "${" in text else {}
    return f"# {group_name}={option}\n" + "\n".join(resolved_lines(text, tree, group_name)) + "\n"


def find(name: str, library: Library) -> tuple[str, str]:
    """Group and option that a name means; `maml`, `algo/maml` and `algo=maml` are the same."""
    every = [(group_name, option) for group_name in GROUPS for option in library.options(group_name)]
    wanted = name.replace("=", "/")
    found = [pair for pair in every if wanted in (pair[1], "/".join(pair))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{name} is the name of several configs; choose one: {', '.join('/'.join(pair) for pair in found)}")
    names = {text: "/".join(pair) for pair in every for text in (pair[1], "/".join(pair))}
    meant = difflib.get_close_matches(wanted, names, n=1)
    raise ConfigError(f"there is no config {name}; " + (f"did you mean {names[meant[0]]}?" if meant else "list them with: metalearn ls"))


def resolved_lines(text: str, tree: dict[str, Any], group_name: str) -> Iterator[str]:
    """The lines of a YAML, with the value in place of every `key: ${…}`."""
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        key, separator, rest = line.strip().partition(":")
        if separator and not key.startswith("#"):
            indent = len(line) - len(line.lstrip())
            path = [*(item for item in path if item[0] < indent), (indent, key)]
            exists, value = lookup(tree, ".".join([group_name, *(name for _, name in path)]))
            if rest.strip().startswith("${") and exists:
                _, _, comment = rest.partition(" #")
                line = f"{line[:indent]}{key}: {json.dumps(value).strip(chr(34))}" + (f" #{comment}" if comment else "")
        yield line


def as_yaml(cfg: dict[str, Any]) -> str:
    return yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True, width=120)


def runs(folder: Path) -> str:
    """One line per run under a folder: state, result with interval, where it is."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; runs are written to ./outputs, or say where: metalearn ls runs FOLDER")
    rows = [["run", "algo", "data", "model", "experiment", "state", "result ± 95% CI", "tasks"]]
    for status in sorted(folder.rglob("status.json")):
        names = names_of(status.parent)
        made_of = [str(names.get(group) or "") for group in NAMED_IN_RESULTS]
        rows.append([str(status.parent), *made_of, state_of(status), *result_of(status.parent / "results.json")])
    return grid(rows) if len(rows) > 1 else f"no runs under {folder}; start one with: metalearn train"


def state_of(status: Path) -> str:
    """What status.json says, unless the process behind it is gone without a word: then nobody holds the run's lock."""
    try:
        state = str((read_json(status) or {})["status"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "unreadable"
    return "killed; resume it" if state == "running" and not is_locked(status.parent / ".lock") else state


def result_of(path: Path) -> tuple[str, str]:
    """Primary metric with interval, and the number of tasks; empty before the run has ended."""
    try:
        results = read_json(path)
        if results is None:
            return "", ""
        primary = results["primary"]
        return f"{primary} {shown(primary, results)}", str(results["episodes"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "unreadable", ""


def existing_run(folder: Path) -> Path:
    """The folder itself if it holds a run; ConfigError that says what it is instead."""
    if (folder / "config.yaml").is_file():
        return folder
    jobs = sorted(path.parent for path in folder.glob("*/config.yaml"))
    if jobs and (folder / "sweep.csv").is_file():
        left = [job for job in jobs if state_of(job / "status.json") != "finished"] or jobs
        raise ConfigError(f"{folder} is a sweep of several runs; name one of them: {', '.join(map(str, left))}")
    if "=" in folder.name and not folder.exists():
        raise ConfigError(f"{folder} is no folder; the folder of a run comes first: RUN_DIR {folder}")
    reason = "does not exist" if not folder.exists() else "holds no config.yaml" if folder.is_dir() else "is not a folder"
    raise ConfigError(f"{folder} is not a run: it {reason}; list the runs with: metalearn ls runs")
