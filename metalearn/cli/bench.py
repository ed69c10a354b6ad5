"""bench: how fast it is, beside other libraries."""

from __future__ import annotations

import argparse
from pathlib import Path

from metalearn.errors import ConfigError


def run(args: argparse.Namespace) -> int:
    """Time our plans beside other libraries on the same work, each checked to give the same result.

    metalearn bench                        everything, in about an hour
    metalearn bench sinusoid anil --repeats 11 --json bench.json
    metalearn bench stride2_5w1s --device cuda
    """
    from metalearn.bench import workloads

    chosen = workloads.choose(args.workloads)
    from metalearn.bench.case import Options
    from metalearn.bench.command import bench, require_writable
    from metalearn.build.device import build_device

    if args.json is not None:
        require_writable(args.json)
    options = Options(
        repeats=args.repeats,
        threads=args.threads,
        compile=not args.no_compile,
        ranks=not args.no_ranks,
        device=args.device,
    )
    build_device({"device": {"name": options.device}})  # refuses one that is not here
    bench(chosen, options, args.json)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from metalearn.bench import workloads

    parser.epilog = workloads.listing()
    parser.add_argument(
        "workloads", nargs="*", metavar="WORKLOAD", help="one of those below; default: all of them"
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="where to write everything that is measured"
    )
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=positive,
        default=7,
        help="timings of each system, whose median counts (default: 7)",
    )
    parser.add_argument(
        "--threads", metavar="N", type=positive, help="of every system (default: as many as PyTorch takes)"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where everything is computed (default: cpu); on cuda in bfloat16, too",
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out compiled plans, which take minutes to build"
    )
    parser.add_argument(
        "--no-ranks", action="store_true", help="leave out plans that share the work among processes"
    )


def positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise ConfigError(f"{word} is no number of repeats or threads; expected a whole number of at least 1")
    return int(word)
