"""doctor and bench: whether this installation computes what it should, and how fast."""

from __future__ import annotations

import argparse
from pathlib import Path

from metalearn import listing
from metalearn.errors import ConfigError
from metalearn.verbs.arguments import RUN_DIR, add_config_dir


def doctor(args: argparse.Namespace) -> int:
    """Check this machine, the folder of one run, or a method of your own: one line each, exit 1 if any check fails.

    metalearn doctor               gradients, plans, compiler, checkpoints, data; takes some seconds
    metalearn doctor RUN_DIR       configuration, every checkpoint, measurements, result; exit 4 if no checkpoint is valid
    metalearn doctor algo=mine --config-dir conf 'trusted=[mine]'    whether it keeps the contract of metalearn.testing
    """
    if args.run is not None and "=" in args.run and not Path(args.run).is_dir():
        from metalearn.config import compose

        words = [args.run, *args.overrides]
        compose(words, args.config_dir)  # before torch: what is misspelt is answered at once
        if all(word.startswith("trusted=") for word in words):
            raise ConfigError(f"{' '.join(words)} chooses nothing to examine; name a choice, as algo=mine, or a RUN_DIR before it")
        from metalearn.doctor import examine_method

        return examine_method(words, args.config_dir)
    if args.config_dir is not None:
        raise ConfigError(f"--config-dir {args.config_dir} goes with a choice, as in: metalearn doctor algo=mine --config-dir DIR")
    run_dir = None if args.run is None else listing.existing_run(Path(args.run))
    from metalearn.doctor import examine_machine, examine_run

    return examine_machine() if run_dir is None else examine_run(run_dir, args.overrides)


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN_DIR|CHOICE", help=f"{RUN_DIR}; or a choice such as algo=mine")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="further choices; or what a resume of the run would need, such as trusted=[mine]"
    )
    add_config_dir(parser)


def bench(args: argparse.Namespace) -> int:
    """Time our plans beside other libraries on the same work, each checked to give the same result.

    metalearn bench                        everything, in about an hour
    metalearn bench sinusoid anil --repeats 11 --json bench.json
    """
    from metalearn.bench import workloads

    chosen = workloads.choose(args.workloads)
    from metalearn.bench.command import bench, require_writable
    from metalearn.bench.record import Options

    if args.json is not None:
        require_writable(args.json)
    options = Options(repeats=args.repeats, threads=args.threads, compile=not args.no_compile, ranks=not args.no_ranks)
    bench(chosen, options, args.json)
    return 0


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    from metalearn.bench import workloads

    parser.epilog = workloads.listing()
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="one of those below; default: all of them")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where to write everything that is measured")
    parser.add_argument("--repeats", metavar="N", type=positive, default=7, help="timings of each system, whose median counts (default: 7)")
    parser.add_argument("--threads", metavar="N", type=positive, help="of every system (default: as many as PyTorch takes)")
    parser.add_argument("--no-compile", action="store_true", help="leave out compiled plans, which take minutes to build")
    parser.add_argument("--no-ranks", action="store_true", help="leave out plans that share the work among processes")


def positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise ConfigError(f"{word} is no number of repeats or threads; expected a whole number of at least 1")
    return int(word)
