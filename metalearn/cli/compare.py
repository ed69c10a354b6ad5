"""compare: whether two methods differ, on the tasks that both were judged on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from metalearn.errors import ConfigError

PICTURE = "compare.png"


def run(args: argparse.Namespace) -> int:
    """Say whether methods differ, on the tasks that all of them were judged on.

    Names are runs, evaluations, folders of runs or patterns. Results that differ by nothing but the seed are
    one method, of which three seeds or more give an interval over seeds. The exit code is 0 whatever wins.

    metalearn compare RUN_A RUN_B
    metalearn compare outputs/sweeps/NAME                  all methods of a sweep, each with each
    metalearn compare RUN_A/evals/test_data.way=20 RUN_B/evals/test_data.way=20

    --json prints metric, higher_is_better, paired, methods (label, folders, seeds, trains, tasks, mean, ci95,
    variance), pairs (a, b, difference, these_models, unpaired, over_seeds, no_interval_over_seeds,
    seeds_paired, enough), differ, unlike, left_out and png; accuracies are fractions, and
    docs/guide/compare.md has every key.
    """
    asked = args.png is not None or not args.json
    picture = Path(args.png or PICTURE)
    if picture.suffix.lower() != ".png" or picture.is_dir():
        raise ConfigError(f"--png {picture} is no name of a picture; expected a file that ends in .png")
    from metalearn.report.compare import as_json, compare
    from metalearn.report.compare_text import text, undrawn

    found = compare(args.names, metric=args.metric, common=args.common, anyway=args.anyway)
    left_out = []
    drawn = found.paired and asked
    if drawn:
        from metalearn.report.scatter import scatter

        try:
            left_out = scatter(found, picture)
        except OSError as error:
            raise ConfigError(
                f"--png {picture} cannot be written: {error.strerror or error}; choose another file"
            ) from error
    if args.json:
        print(json.dumps({**as_json(found), "png": str(picture) if drawn else None}, indent=1))
        return 0
    print(text(found))
    if drawn:
        print(f"\n{picture} has every task as a point{undrawn(found, left_out)}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="+",
        metavar="RUN|EVALUATION|FOLDER|PATTERN",
        help="whose results are compared, as outputs/sweeps/NAME or 'outputs/*maml*/*'",
    )
    parser.add_argument("--metric", metavar="NAME", help="column of eval_<split>.csv (default: the primary)")
    parser.add_argument("--common", action="store_true", help="compare only the tasks that all results share")
    parser.add_argument(
        "--anyway", action="store_true", help="compare unpaired where protocols or tasks are unlike"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--png",
        metavar="FILE",
        help=f"picture of every task (default: {PICTURE}, and none with --json)",
    )
