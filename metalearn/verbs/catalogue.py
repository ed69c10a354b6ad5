"""ls, show and completion: the verbs that say what there is to choose from."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from metalearn import completion, listing
from metalearn.errors import ConfigError
from metalearn.schema import closest
from metalearn.verbs.arguments import add_config_dir


def ls(args: argparse.Namespace) -> int:
    """List what can be chosen, and the runs that exist: one line each.

    metalearn ls algo
    metalearn ls runs [FOLDER]
    """
    if args.what == "runs":
        print(listing.runs(args.folder))
    else:
        groups = [args.what] if args.what else list(listing.GROUPS)
        print("\n\n".join(listing.group(name, args.config_dir) for name in groups))
    return 0


def ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", metavar="WHAT", type=known_listing, help=f"{', '.join(listing.GROUPS)} or runs; default: all groups"
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="where to look for runs (default: outputs)")
    add_config_dir(parser)


def known_listing(word: str) -> str:
    names = [*listing.GROUPS, "runs"]
    if word not in names:
        meant = closest(word, names)
        raise ConfigError(f"metalearn ls {word}: {word} is none of {', '.join(names)}" + (f"; did you mean {meant}?" if meant else ""))
    return word


def show(args: argparse.Namespace) -> int:
    """Print the YAML of a choice, with its comments and with every reference replaced by its value.

    metalearn show maml
    metalearn show data/omniglot
    metalearn show omniglot_maml        a recipe, and the whole configuration that it makes
    """
    print(listing.show(args.name, args.config_dir), end="")
    return 0


def show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="CONFIG", help="a name that `metalearn ls` lists, or group/name")
    add_config_dir(parser)


def complete(args: argparse.Namespace) -> int:
    """Print the script that gives a shell tab completion.

    eval "$(metalearn completion bash)"        in ~/.bashrc, or zsh in ~/.zshrc
    """
    from metalearn.verbs import VERBS  # not above: the table names this function

    if args.shell == "query":  # what the script asks; no shell
        line = os.environ.get("COMP_LINE", "")
        point = os.environ.get("COMP_POINT", "")
        print("\n".join(completion.complete(line, int(point) if point.isdecimal() else len(line), tuple(VERBS))))
    elif args.shell in completion.SHELLS:
        print(completion.script(args.shell), end="")
    else:
        raise ConfigError(f"there is no completion for {args.shell}; choose from {', '.join(completion.SHELLS)}")
    return 0


def complete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", help=" or ".join(completion.SHELLS))
