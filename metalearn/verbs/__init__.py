"""The verbs: functions from parsed words to an exit code. Their docstrings are their help.

Each imports torch inside, once its words are known to be right.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from metalearn.verbs import catalogue, checks, datasets, runs

VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": runs.train,
    "resume": runs.resume,
    "eval": runs.evaluate,
    "ls": catalogue.ls,
    "show": catalogue.show,
    "doctor": checks.doctor,
    "data": datasets.data,
    "bench": checks.bench,
    "completion": catalogue.complete,
}
RUNS = ("train", "resume", "eval")  # what several ranks can do together
ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "train": runs.train_arguments,
    "resume": runs.run_arguments,
    "eval": runs.eval_arguments,
    "ls": catalogue.ls_arguments,
    "show": catalogue.show_arguments,
    "doctor": checks.doctor_arguments,
    "data": datasets.data_arguments,
    "bench": checks.bench_arguments,
    "completion": catalogue.complete_arguments,
}
