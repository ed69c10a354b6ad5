"""train, resume and eval: the verbs that begin a run, continue it, and judge it."""

from __future__ import annotations

import argparse
from pathlib import Path

from metalearn import listing, slurm
from metalearn.errors import ConfigError
from metalearn.launcher import launched
from metalearn.verbs.arguments import RUN_DIR, add_config_dir

OVERRIDES = "key=value to set, group=name to choose; `metalearn ls` lists the choices, `metalearn show NAME` the keys"


def train(args: argparse.Namespace) -> int:
    """Train an algorithm on the tasks of a dataset, then judge it on its test tasks.

    metalearn train algo=protonet data=omniglot data.way=20
    metalearn train experiment=omniglot_maml
    metalearn train -m algo=maml,protonet seed=0,1 sweep=first        every combination; again: only what is left
    metalearn train --config-dir conf algo=mine 'trusted=[mine]'        classes of your own
    """
    from metalearn import config

    if args.multirun:
        from metalearn.sweep import multirun

        if launched() is not None:
            raise ConfigError("the jobs of a sweep run one after the other; start it without a launcher, with device.ranks=auto")
        if args.cfg:
            raise ConfigError("--cfg prints one configuration and --multirun asks for several; leave one of them out")
        return multirun(args.overrides, args.config_dir, retry_failed=args.retry_failed)
    if args.retry_failed:
        raise ConfigError("--retry-failed is for sweeps; add -m, or continue one run with: metalearn resume RUN_DIR")
    cfg = config.compose(args.overrides, args.config_dir)
    if args.cfg:
        print(listing.as_yaml(cfg), end="")
        return 0
    if not slurm.restarts():
        config.refuse_existing_run(cfg)
    from metalearn import build, run

    args.run_dir = run.new_run_dir(cfg, args.overrides)
    if slurm.restarts() and run.holds_run(args.run_dir, cfg):  # the job has run this command before
        return run.resume(args.run_dir, [word for word in args.overrides if word.startswith("trusted=")])
    prebuilt = build.Prebuilt()
    build.check_machine(cfg, args.run_dir, prebuilt)
    return run.train(cfg, args.overrides, args.run_dir, prebuilt=prebuilt)


def train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help=OVERRIDES)
    parser.add_argument("-m", "--multirun", action="store_true", help="run every combination of the values a,b,c that are given")
    parser.add_argument("--retry-failed", action="store_true", help="with -m: also run the jobs of the sweep that have failed")
    parser.add_argument("--cfg", choices=["job"], help="print the resolved configuration and stop")
    add_config_dir(parser)


def resume(args: argparse.Namespace) -> int:
    """Continue a run exactly where it was stopped.

    metalearn resume RUN_DIR
    metalearn resume RUN_DIR trainer.outer_steps=20000        train longer
    """
    from metalearn import config

    args.run_dir = listing.existing_run(args.run)
    config.refuse_unkept(config.reopen(config.read_saved(args.run_dir), args.overrides))
    from metalearn import run

    return run.resume(args.run_dir, args.overrides)


def evaluate(args: argparse.Namespace) -> int:
    """Judge a checkpoint of a run under another protocol.

    metalearn eval RUN_DIR eval.episodes=2000
    metalearn eval RUN_DIR data.way=20 eval.split=val eval.checkpoint=last
    metalearn eval RUN_DIR data=image_folder data.root=PATH data.fractions=[0,0,1]        all classes of other data
    """
    from metalearn import config

    run_dir = listing.existing_run(args.run)  # not args.run_dir: a failure of an evaluation does not belong into the run's own log
    saved = config.read_saved(run_dir)
    config.reopen(saved, args.overrides, args.config_dir, sizes=saved["data"])
    from metalearn import run

    return run.evaluate_run(run_dir, args.overrides, args.config_dir)


def run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help=RUN_DIR)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="key=value to change")


def eval_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    add_config_dir(parser)
