"""What several verbs say of their arguments."""

from __future__ import annotations

import argparse

RUN_DIR = "folder of a run; `metalearn ls runs` lists them"


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-dir", metavar="DIR", help="folder with YAMLs of your own, searched besides $METALEARN_CONFIG_DIR")
