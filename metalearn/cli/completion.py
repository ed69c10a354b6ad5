"""Tab completion: verbs, and after the verb keys, choices and run folders. `metalearn completion bash` prints
the script.

The shell asks `metalearn completion query` with the line in COMP_LINE and COMP_POINT, and takes one answer
per line.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metalearn.bench import workloads
from metalearn.cli.main import parser_of
from metalearn.cli.verbs import VERBS
from metalearn.config import schema
from metalearn.config.compatibility import MOVED
from metalearn.config.loader import Library
from metalearn.config.saved import read_saved
from metalearn.errors import ConfigError, MetalearnError
from metalearn.rundir import choices, listing
from metalearn.rundir.choices import GROUPS

SHELLS = ("bash", "zsh")
SCRIPT = r"""
_metalearn() {
    local IFS=$'\n' word="${COMP_LINE:0:$COMP_POINT}" i
    word="${word##* }"
    COMPREPLY=($(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" metalearn completion query 2>/dev/null))
    # bash breaks words at "=", so that only what follows it may be answered.
    if [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        local head="${word%"${word##*=}"}"
        COMPREPLY=("${COMPREPLY[@]#"$head"}")
    fi
    # A finished word is followed by a space; a key still wants its value.
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[*]}" != *[=./] && -z "$ZSH_VERSION" ]]; then
        COMPREPLY=("${COMPREPLY[*]} ")
    fi
}
complete -o nospace -o default -F _metalearn metalearn
"""


def script(shell: str) -> str:
    """What to evaluate in the shell's start-up file."""
    if shell == "zsh":
        return (
            '# put into ~/.zshrc:  eval "$(metalearn completion zsh)"\nautoload -U +X bashcompinit && '
            "bashcompinit\n" + SCRIPT
        )
    return '# put into ~/.bashrc:  eval "$(metalearn completion bash)"\n' + SCRIPT


def complete(line: str, point: int, verbs: tuple[str, ...]) -> list[str]:
    """The words that the word before the cursor could become; empty when nothing fits or the line is
    wrong.
    """
    words = line[:point].split(" ")
    words = words[:1] + [word for word in words[1:-1] if word] + words[-1:]
    try:
        return sorted({answer for answer in answers(words[1:], verbs) if answer.startswith(words[-1])})
    except MetalearnError:
        return []


def answers(words: list[str], verbs: tuple[str, ...]) -> Iterator[str]:
    """words: everything after the program's name, the word under the cursor last."""
    *before, word = words or [""]
    if not before:
        yield from (*verbs, "--help", "--version")
        return
    verb, given = before[0], before[1:]
    if verb not in verbs:
        return
    # argparse has no public list of what a parser takes
    arguments = parser_of(verb, importlib.import_module(VERBS[verb]))._actions
    options = {name: argument for argument in arguments for name in argument.option_strings}
    config_dir = given[given.index("--config-dir") + 1] if "--config-dir" in given[:-1] else None
    if given and takes_value(options, given[-1]):
        yield from map(str, options[given[-1]].choices or ())
    elif word.startswith("-"):
        yield from options
    else:
        named = without_options(given, options)
        positionals = [argument for argument in arguments if not argument.option_strings]
        for argument in positionals[len(named) : len(named) + 1]:
            yield from map(str, argument.choices or ())
        yield from name_answers(verb, word, named, Library(config_dir))


def takes_value(options: Mapping[str, argparse.Action], word: str) -> bool:
    return word in options and options[word].nargs != 0


def without_options(given: list[str], options: Mapping[str, argparse.Action]) -> list[str]:
    """The words that are neither an option nor the value of one."""
    before = ["", *given]
    return [
        word
        for i, word in enumerate(given)
        if not word.startswith("-") and not takes_value(options, before[i])
    ]


def name_answers(verb: str, word: str, given: list[str], library: Library) -> Iterator[str]:
    """Of the words of a verb that are no options, those that depend on what there is to choose and which
    runs there are.
    """
    if verb == "train":
        yield from override_answers(word, given, library)
    elif verb in ("resume", "eval"):
        yield from saved_answers(word, Path(given[0])) if given else run_folders()
    elif verb == "predict":  # whose further words are pictures, which the shell completes
        yield from () if given else run_folders()
    elif verb == "report":
        yield from run_folders()
    elif verb == "ls" and given == ["runs"]:
        yield from (f"{key}=" for key in listing.KEYS)
    elif verb == "doctor":
        yield from [] if given else run_folders()
        yield from override_answers(word, given, library) if not given or "=" in given[0] else []
    elif verb == "data" and given:
        yield from data_answers(word, given, library)
    elif verb == "bench":
        yield from workloads.names()
    elif verb == "show" and not given:
        yield from (option for group in GROUPS for option in library.options(group))
    elif verb == "completion" and not given:
        yield from SHELLS


def override_answers(word: str, given: list[str], library: Library) -> Iterator[str]:
    """Group choices, or keys of the tree that the choices so far compose, or values of a key that has few."""
    key, is_value, value = word.partition("=")
    if is_value and key in library.groups:
        done = value.rpartition(",")[0]
        yield from (
            f"{key}={done},{option}" if done else f"{key}={option}" for option in library.options(key)
        )
        return
    chosen = [
        text
        for text in given
        if (pair := text.partition("="))[0] in GROUPS and pair[2] in library.options(pair[0])
    ]
    tree = {key: value for key, value in library.load(chosen).items() if key != "hydra"}
    if not is_value:
        yield from (f"{group}=" for group in GROUPS)
    yield from value_answers(word, tree)


def value_answers(word: str, tree: Mapping[str, Any]) -> Iterator[str]:
    """Keys one level at a time, so that a first TAB does not print a hundred of them; after `=`, the key's
    few values.
    """
    key, is_value, _ = word.partition("=")
    allowed = schema.ranges_of(tree)
    for name, default in schema.leaves(tree):
        if name in MOVED:
            continue
        if is_value and name == key:
            few = allowed[name].few if name in allowed else ("true", "false") if type(default) is bool else ()
            yield from (f"{name}={value}" for value in few)
        elif not is_value and name.startswith(word) and not name.endswith("_target_"):
            rest = name[len(word) :]
            yield word + rest.partition(".")[0] + "." if "." in rest else f"{name}="


def data_answers(word: str, given: list[str], library: Library) -> Iterator[str]:
    if len(given) == 1:
        yield from library.options("data")
    else:
        yield from value_answers(word, {"data": library.load([f"data={given[1]}"])["data"]})


def run_folders() -> Iterator[str]:
    """Runs under outputs/ of the working folder, newest names last."""
    yield from (
        str(path.parent)
        for path in sorted(Path("outputs").rglob("config.yaml"))
        if path.parent.name != "evals"
    )


def saved_answers(word: str, run_dir: Path) -> Iterator[str]:
    if (run_dir / "config.yaml").is_file():
        saved = read_saved(run_dir)
        del saved[choices.KEY]  # which nobody can set
        yield from value_answers(word, saved)


def run(args: argparse.Namespace) -> int:
    """Print the script that gives a shell tab completion.

    eval "$(metalearn completion bash)"        in ~/.bashrc, or zsh in ~/.zshrc
    """
    if args.shell == "query":  # what the script asks; no shell
        line = os.environ.get("COMP_LINE", "")
        point = os.environ.get("COMP_POINT", "")
        print("\n".join(complete(line, int(point) if point.isdecimal() else len(line), tuple(VERBS))))
    elif args.shell in SHELLS:
        print(script(args.shell), end="")
    else:
        raise ConfigError(f"there is no completion for {args.shell}; choose from {', '.join(SHELLS)}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", help=" or ".join(SHELLS))
