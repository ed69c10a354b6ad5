"""The one table of verbs: the module behind each, whose `run` goes from parsed words to an exit code and is
the help.

Each imports torch inside `run`, once its words are known to be right.
"""

from __future__ import annotations

VERBS = {
    "train": "metalearn.cli.train",
    "resume": "metalearn.cli.resume",
    "eval": "metalearn.cli.evaluate",
    "ls": "metalearn.cli.ls",
    "show": "metalearn.cli.show",
    "doctor": "metalearn.cli.doctor",
    "data": "metalearn.cli.data",
    "bench": "metalearn.cli.bench",
    "completion": "metalearn.cli.completion",
}
RUNS = ("train", "resume", "eval")  # what several ranks can do together
