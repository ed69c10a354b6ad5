"""What several verbs say of their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

RUN_DIR = "folder of a run; `metalearn ls runs` lists them"


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-dir",
        metavar="DIR",
        help="folder with YAMLs of your own, searched besides $METALEARN_CONFIG_DIR",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help=RUN_DIR)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="key=value to change")
