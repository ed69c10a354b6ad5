"""Which verbs there are: every module of this package but the helpers is one, named as its file is.

Its `add_arguments(parser)` says what it takes; its `run(args)` does it and returns the exit code, and the
docstring of `run` is the help. Torch is imported inside `run` only, once its words are known to be right.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path

HELPERS = {"arguments", "main", "terminal", "verbs"}
FIRST = (
    "train",
    "resume",
    "eval",
    "compare",
    "ls",
    "show",
    "doctor",
    "data",
    "bench",
)  # in the overview; the rest follows
RUNS = ("train", "resume", "eval")  # what several ranks can do together

_found = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])} - HELPERS
VERBS = {name: f"metalearn.cli.{name}" for name in (*FIRST, *sorted(_found - {*FIRST}))}
