"""resume: continue a run."""

from __future__ import annotations

import argparse

from metalearn.cli.arguments import add_run_arguments
from metalearn.rundir.reader import existing_run


def run(args: argparse.Namespace) -> int:
    """Continue a run exactly where it was stopped.

    metalearn resume RUN_DIR
    metalearn resume RUN_DIR trainer.outer_steps=20000        train longer
    """
    from metalearn.config.compose import refuse_unkept, reopen
    from metalearn.config.saved import read_saved

    args.run_dir = existing_run(args.run)
    refuse_unkept(reopen(read_saved(args.run_dir), args.overrides))
    from metalearn.run.resume import resume

    return resume(args.run_dir, args.overrides)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
