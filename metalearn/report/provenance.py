"""Where a row of a report comes from: commit, versions, machine, data, and the command that repeats it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from metalearn.report.collection import Reported
from metalearn.report.methods import shown
from metalearn.report.rows import Row
from metalearn.report.tables import natural

# Words between the parts of an evaluation's folder, such as test_data.way=20_data.shot=5.
NEXT_WORD = re.compile(r"_(?=(?:algo|data|device|eval|model|optimizer|trainer|trusted)[.=])")
HASHED = re.compile(r"-[0-9a-f]{8}$")
UNKNOWN = "not kept"


class Change(NamedTuple):
    """A setting of the first row of a table, and of this one; None where a row has no such key."""

    key: str
    before: str | None
    after: str | None


def facts(row: Row) -> list[tuple[str, str]]:
    """(what, value) of everything that a row's runs came from; several values where its seeds differ."""
    found: dict[str, list[str]] = {}
    for member in row.members:
        for name, value in _facts(member):
            found.setdefault(name, []).append(value)
    return [(name, "; ".join(dict.fromkeys(values))) for name, values in found.items()]


def _facts(one: Reported) -> list[tuple[str, str]]:
    env = one.env
    versions, hardware = _mapping(env.get("versions")), _mapping(env.get("hardware"))
    commit = str(env.get("git_sha") or UNKNOWN)
    commit += " with uncommitted changes" if env.get("git_dirty") else ""
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    machine = ", ".join(
        f"{name.replace('num_', '').replace('_', ' ')} {value}"
        for name, value in hardware.items()
        if value is not None
    )
    data = one.results["protocol"].get("data_sha256") or env.get("data_sha256") or UNKNOWN
    return [
        ("commit", commit),
        ("versions", packages or UNKNOWN),
        ("machine", machine or UNKNOWN),
        ("data sha256", str(data)),
        ("tasks sha256", str(one.results.get("tasks_sha256") or UNKNOWN)),
        ("checkpoint", f"{one.results['protocol'].get('checkpoint', 'best')}, step {one.results['step']:,}"),
    ]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def command(row: Row) -> str:
    """What to type for a row; for several seeds a sweep. A comment where the words were not kept."""
    first = row.first
    words = [word for word in typed(first) if not word.startswith(("seed=", "run_dir="))]
    seeds = ",".join(map(str, row.seeds))
    if not typed(first) and not first.env:
        train = "# neither overrides.yaml nor env.json was kept"
    else:
        seed = [f"seed={seeds}"] if seeds != "0" else []
        train = shlex.join(["metalearn", "train", *(["-m"] if len(row.members) > 1 else []), *words, *seed])
    if not first.is_evaluation:
        return train
    name = first.folder.name
    if HASHED.search(name):
        return f"{train}\n# then metalearn eval, with words that the folder {name} does not keep whole"
    split, *own = NEXT_WORD.split(name)
    own += [f"eval.split={split}"] if split != "test" else []
    return f"{train}\n" + "\n".join(
        shlex.join(["metalearn", "eval", str(member.judged.run_dir), *own]) for member in row.members
    )


def typed(one: Reported) -> list[str]:
    """The words behind `metalearn train`, options of argv included."""
    argv = one.env.get("argv")
    argv = [str(word) for word in argv[2:]] if isinstance(argv, list) else []
    options = []
    for place, word in enumerate(argv):
        if word == "--config-dir":
            options += argv[place : place + 2]
        elif word.startswith("--config-dir="):
            options.append(word)
    return [*(one.overrides or [word for word in argv if "=" in word and word not in options]), *options]


def changes(first: Row, row: Row) -> list[Change]:
    """The facts in which the method of a row differs from that of the first row of its table."""
    before, after = first.first.facts.science, row.first.facts.science
    keys: Sequence[str] = sorted({**before, **after}, key=natural)
    return [
        Change(
            key,
            shown(before[key]) if key in before else None,
            shown(after[key]) if key in after else None,
        )
        for key in keys
        if before.get(key) != after.get(key) or (key in before) != (key in after)
    ]
