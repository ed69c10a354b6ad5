"""eval: judge a checkpoint of a run under another protocol."""

from __future__ import annotations

import argparse

from metalearn.cli.arguments import add_config_dir, add_run_arguments
from metalearn.rundir.reader import existing_run


def run(args: argparse.Namespace) -> int:
    """Judge a checkpoint of a run under another protocol.

    metalearn eval RUN_DIR eval.episodes=2000
    metalearn eval RUN_DIR data.way=20 eval.split=val eval.checkpoint=last
    metalearn eval RUN_DIR 'eval.grid={way: [5,20], shot: [1,5]}'
    metalearn eval RUN_DIR eval.tasks=FILE      exactly the tasks of a file, see `data lock`
    metalearn eval RUN_DIR eval.ci_target=0.2 eval.episodes=20000
    metalearn eval RUN_DIR data=image_folder data.root=PATH data.fractions=[0,0,1]
                                all classes of other data
    """
    from metalearn.config.compose import reopen
    from metalearn.config.saved import read_saved

    # not args.run_dir: a failure of an evaluation does not belong into the run's own log
    run_dir = existing_run(args.run)
    saved = read_saved(run_dir)
    overrides = [*args.overrides, *(["eval.anyway=true"] if args.anyway else [])]
    reopen(saved, overrides, args.config_dir, sizes=saved["data"])
    from metalearn.run.evaluate import evaluate_run

    return evaluate_run(run_dir, overrides, args.config_dir)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--anyway",
        action="store_true",
        help="also judge on classes that the run was trained on; the protocol then says so",
    )
    add_config_dir(parser)
