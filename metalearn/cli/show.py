"""show: the YAML behind a name, or what a run or one of its checkpoints is."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from metalearn.cli.arguments import add_config_dir
from metalearn.config.compose import compose
from metalearn.config.loader import Library
from metalearn.config.saved import read_saved
from metalearn.config.schema import lookup
from metalearn.errors import ConfigError
from metalearn.report.run import shown_checkpoint, shown_run
from metalearn.rundir.checkpoint_files import located
from metalearn.rundir.choices import GROUPS
from metalearn.rundir.reader import existing_run


def run(args: argparse.Namespace) -> int:
    """Print the YAML of a choice, or what a run or one of its checkpoints is.

    A YAML has its comments, and every reference is replaced by its value; a run has its state, result and
    configuration; a checkpoint its files and tensors.

    metalearn show maml
    metalearn show data/omniglot
    metalearn show omniglot_maml        a recipe, and the whole configuration that it makes
    metalearn show RUN_DIR
    metalearn show RUN_DIR/checkpoints/best
    """
    print(show(args.name, args.config_dir), end="")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        metavar="CONFIG|RUN_DIR",
        help="a name that `metalearn ls` lists, or group/name; or the folder of a run or a checkpoint",
    )
    add_config_dir(parser)


def show(name: str, config_dir: str | None = None) -> str:
    """What `run` prints. The references of a choice are replaced by the values they have by default."""
    run_dir, checkpoint = located(Path(name))
    if checkpoint is not None or (run_dir / "config.yaml").exists():
        existing_run(run_dir)
        if checkpoint is not None:
            return shown_checkpoint(run_dir, checkpoint)
        return shown_run(run_dir, read_saved(run_dir))
    library = Library(config_dir)
    if name in ("train", "config"):
        return (library.folders[0] / "train.yaml").read_text(encoding="utf-8")
    group_name, option = find(name, library)
    library.read(group_name, option)  # says what is wrong with a file that cannot be shown
    text = library.path(group_name, option).read_text(encoding="utf-8")
    if group_name == "experiment":
        whole = as_yaml(compose([f"experiment={option}"], config_dir))
        return f"# experiment={option}\n{text}\n# and the whole configuration that it makes\n{whole}"
    bases = [path.read_text(encoding="utf-8") for path, _ in library.files(group_name, option)[:-1]]
    tree = library.load([f"{group_name}={option}"]) if any("${" in part for part in (text, *bases)) else {}
    place = group_name.replace("/", ".")
    shown = [
        "\n".join(resolved_lines(part, tree, place))
        for part in (f"# {group_name}={option}\n{text}", *reversed(bases))
    ]
    return "\n\n# … and, where it does not say otherwise:\n".join(shown) + "\n"


def find(name: str, library: Library) -> tuple[str, str]:
    """Group and option that a name means; `maml`, `algo/maml` and `algo=maml` are the same."""
    every = [(group_name, option) for group_name in GROUPS for option in library.options(group_name)]
    wanted = name.replace("=", "/")
    found = [pair for pair in every if wanted in (pair[1], "/".join(pair))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"{name} is the name of several configs; choose one: "
            f"{', '.join('/'.join(pair) for pair in found)}"
        )
    names = {text: "/".join(pair) for pair in every for text in (pair[1], "/".join(pair))}
    meant = difflib.get_close_matches(wanted, names, n=1)
    raise ConfigError(
        f"there is no config {name}; "
        + (f"did you mean {names[meant[0]]}?" if meant else "list them with: metalearn ls")
    )


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
                line = f"{line[:indent]}{key}: {json.dumps(value).strip(chr(34))}" + (
                    f" #{comment}" if comment else ""
                )
        yield line


def as_yaml(cfg: dict[str, Any]) -> str:
    return yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True, width=120)
