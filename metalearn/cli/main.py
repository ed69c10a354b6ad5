"""The door of the command line: it finds the verb, and answers with its exit code and one clean line for
everything that goes wrong.

Torch is imported only once the configuration is known to be right, so that help, listings, completion and
mistakes answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from metalearn.cli.terminal import complain, complain_unexpected, patient_streams, say_error
from metalearn.cli.verbs import RUNS, VERBS
from metalearn.config.schema import closest
from metalearn.distributed import entry
from metalearn.errors import ConfigError, MetalearnError
from metalearn.rundir.messages import echo, listening


class Parser(argparse.ArgumentParser):
    """argparse that reports mistakes as ConfigError instead of printing and leaving."""

    def error(self, message: str) -> NoReturn:
        # Overrides are never required, but argparse names them as soon as something else is missing.
        raise ConfigError(f"{message.removesuffix(', OVERRIDE')}; see: {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # a help text on a full disk
        super().exit(status, message)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    with patient_streams():
        args = argparse.Namespace(run_dir=None)
        try:
            code = dispatch(words, args)
            sys.stdout.flush()  # here, so that a full disk is still answered below
            return code
        except MetalearnError as error:
            return complain(error)
        except SystemExit as stop:  # argparse after --help
            if isinstance(stop.code, str):
                say_error(f"error: {stop.code}")
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except KeyboardInterrupt:
            say_error("interrupted")
            return 130
        except Exception as error:  # noqa: BLE001 - the last line of defence: a person never sees a traceback
            return complain_unexpected(error, args.run_dir)


def dispatch(words: list[str], args: argparse.Namespace) -> int:
    """Run the verb that the first word names."""
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help"):
        print(overview())
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"metalearn {version('metalearn-runner')}")
        return 0
    if verb not in VERBS:
        meant = closest(verb, VERBS)
        question = f"did you mean metalearn {meant}?" if meant else f"choose from {', '.join(VERBS)}"
        raise ConfigError(f"metalearn {verb} does not exist; {question}")
    module = importlib.import_module(VERBS[verb])
    parser_of(verb, module).parse_intermixed_args(words[1:], namespace=args)
    if verb in RUNS:
        with listening(echo):
            return entry.share(module.run, args)
    # What these print is their answer, which may be read by a program.
    with listening(say_error, level=logging.INFO if verb == "data" else logging.WARNING):
        return int(module.run(args))


def parser_of(verb: str, module: ModuleType) -> Parser:
    """What a verb takes, by the module that does it."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog=f"metalearn {verb}", description=inspect.getdoc(module.run), formatter_class=formatter
    )
    module.add_arguments(parser)
    return parser


def overview() -> str:
    lines = ["usage: metalearn VERB …   (metalearn VERB --help says more)", ""]
    helps = {verb: str(importlib.import_module(name).run.__doc__) for verb, name in VERBS.items()}
    lines += [f"  {verb:<11} {text.splitlines()[0]}" for verb, text in helps.items()]
    return "\n".join([*lines, "", "start with: metalearn train"])
