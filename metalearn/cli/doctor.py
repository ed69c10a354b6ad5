"""doctor: whether this installation, a run or a method computes what it should."""

from __future__ import annotations

import argparse
from pathlib import Path

from metalearn.cli.arguments import RUN_DIR, add_config_dir
from metalearn.errors import ConfigError
from metalearn.rundir.reader import existing_run


def run(args: argparse.Namespace) -> int:
    """Check this machine, the folder of a run, or a method of your own: one line each, exit 1 if any fails.

    metalearn doctor            gradients, plans, compiler, checkpoints, data; takes some seconds
    metalearn doctor RUN_DIR    configuration, every checkpoint, measurements, result; exit 4 if no
                                checkpoint is valid
    metalearn doctor algo=mine --config-dir conf 'trusted=[mine]'
                                whether it keeps the contract of metalearn.testing
    """
    if args.run is not None and "=" in args.run and not Path(args.run).is_dir():
        from metalearn.config.compose import compose

        words = [args.run, *args.overrides]
        compose(words, args.config_dir)  # before torch: what is misspelt is answered at once
        if all(word.startswith("trusted=") for word in words):
            raise ConfigError(
                f"{' '.join(words)} chooses nothing to examine; name a choice, as algo=mine, or a RUN_DIR "
                "before it"
            )
        from metalearn.doctor.examine import examine_method

        return examine_method(words, args.config_dir)
    if args.config_dir is not None:
        raise ConfigError(
            f"--config-dir {args.config_dir} goes with a choice, as in: metalearn doctor algo=mine "
            "--config-dir DIR"
        )
    run_dir = None if args.run is None else existing_run(Path(args.run))
    from metalearn.doctor.examine import examine_machine, examine_run

    return examine_machine() if run_dir is None else examine_run(run_dir, args.overrides)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", metavar="RUN_DIR|CHOICE", help=f"{RUN_DIR}; or a choice such as algo=mine"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="OVERRIDE",
        help="further choices; or what a resume of the run would need, such as trusted=[mine]",
    )
    add_config_dir(parser)
