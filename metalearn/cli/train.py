"""train: begin a run, or the runs of a sweep."""

from __future__ import annotations

import argparse

from metalearn.cli.arguments import add_config_dir
from metalearn.cli.show import as_yaml
from metalearn.distributed.torchrun import launched
from metalearn.errors import ConfigError
from metalearn.run import slurm

OVERRIDES = (
    "key=value to set, group=name to choose; `metalearn ls` lists the choices, `metalearn show NAME` the keys"
)


def run(args: argparse.Namespace) -> int:
    """Train an algorithm on the tasks of a dataset, then judge it on its test tasks.

    metalearn train algo=protonet data=omniglot data.way=20
    metalearn train experiment=omniglot_maml
    metalearn train -m algo=maml,protonet seed=0,1 sweep=first
                                every combination; the same command again does only what is left
    metalearn train --config-dir conf algo=mine 'trusted=[mine]'
                                classes of your own
    """
    from metalearn.config.compose import compose
    from metalearn.rundir.reader import refuse_existing_run

    if args.multirun:
        from metalearn.sweep.multirun import multirun

        if launched() is not None:
            raise ConfigError(
                "the jobs of a sweep run one after the other; start it without a launcher, with "
                "device.ranks=auto"
            )
        if args.cfg:
            raise ConfigError(
                "--cfg prints one configuration and --multirun asks for several; leave one of them out"
            )
        return multirun(args.overrides, args.config_dir, retry_failed=args.retry_failed)
    if args.retry_failed:
        raise ConfigError(
            "--retry-failed is for sweeps; add -m, or continue one run with: metalearn resume RUN_DIR"
        )
    cfg = compose(args.overrides, args.config_dir)
    if args.cfg:
        print(as_yaml(cfg), end="")
        return 0
    if not slurm.restarts():
        refuse_existing_run(cfg)
    from metalearn.build.checks import Prebuilt, check_machine
    from metalearn.run.folder import holds_run, new_run_dir
    from metalearn.run.resume import resume
    from metalearn.run.train import train

    args.run_dir = new_run_dir(cfg, args.overrides)
    if slurm.restarts() and holds_run(args.run_dir, cfg):  # the job has run this command before
        return resume(args.run_dir, [word for word in args.overrides if word.startswith("trusted=")])
    prebuilt = Prebuilt()
    check_machine(cfg, args.run_dir, prebuilt)
    return train(cfg, args.overrides, args.run_dir, prebuilt=prebuilt)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help=OVERRIDES)
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="run every combination of the values a,b,c that are given",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="with -m: also run the jobs of the sweep that have failed"
    )
    parser.add_argument("--cfg", choices=["job"], help="print the resolved configuration and stop")
    add_config_dir(parser)
