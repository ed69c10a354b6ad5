"""data: fetch a dataset, or draw episodes of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metalearn.cli.arguments import add_config_dir
from metalearn.config.schema import closest
from metalearn.errors import ConfigError
from metalearn.rundir.reader import existing_run

ACTIONS = ("prepare", "preview", "lock")


def run(args: argparse.Namespace) -> int:
    """Fetch and unpack a dataset now, or draw a few of its episodes.

    metalearn data prepare omniglot        needed only before a machine goes offline
    metalearn data preview omniglot data.way=3 --png episodes.png
    metalearn data lock omniglot data.way=20 eval.episodes=1000 --output tasks.jsonl
    metalearn data lock RUN_DIR            the tasks that a run was judged on, to be judged on by others

    `lock` writes one task per line: the names of its rows, with their labels. `eval.tasks=FILE` judges on
    exactly these.
    """
    cfg = configuration(args)
    if args.action == "lock":
        return lock(args, cfg)
    from metalearn.build.device import build_device, prepare_host
    from metalearn.build.objects import build_source

    prepare_host(cfg)
    source = build_source(cfg, build_device({"device": {"name": "cpu"}}))
    if args.action == "prepare":
        source.check(("train", "val", "test"))
        fingerprint = source.fingerprint()
        for split in ("train", "val", "test"):
            print(f"{split}: " + ", ".join(f"{key} {value}" for key, value in source.protocol(split).items()))
        print(f"data={args.name} is ready (sha256 {fingerprint})")
        return 0
    from metalearn.report.episodes import episodes

    tasks = source.tasks(args.split, seed=cfg["eval"]["seed"], first=0, count=args.tasks)
    path = args.png or Path(f"{args.name}_{args.split}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        print(episodes(path, tasks, count=args.tasks))
    except OSError as error:
        raise ConfigError(
            f"--png {path} cannot be written: {error.strerror or error}; choose another file"
        ) from error
    return 0


def configuration(args: argparse.Namespace) -> dict[str, Any]:
    """That of a data set, or of a run where one is locked."""
    from metalearn.config.compose import compose, reopen
    from metalearn.config.saved import read_saved

    if args.action == "lock" and Path(args.name).is_dir():
        run_dir = existing_run(Path(args.name))
        saved = read_saved(run_dir)
        return reopen(saved, args.overrides, args.config_dir, sizes=saved["data"])
    return compose([f"data={args.name}", *args.overrides], args.config_dir)


def lock(args: argparse.Namespace, cfg: dict[str, Any]) -> int:
    """Write the list of tasks that an evaluation of this configuration meets."""
    from metalearn.run.lock import write_tasks

    run_dir = Path(args.name) if Path(args.name).is_dir() else None
    path = args.output or Path(f"{Path(args.name).resolve().name}_{cfg['eval']['split']}.jsonl")
    try:
        print(write_tasks(cfg, path, run_dir))
    except OSError as error:
        raise ConfigError(
            f"--output {path} cannot be written: {error.strerror or error}; choose another file"
        ) from error
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", metavar="ACTION", choices=ACTIONS, type=known_action, help=", ".join(ACTIONS)
    )
    parser.add_argument(
        "name", metavar="NAME", help="a dataset; `metalearn ls data` lists them; for lock also a RUN_DIR"
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="data.key=value, eval.key=value")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="of lock (default: NAME_SPLIT.jsonl in this folder)"
    )
    parser.add_argument(
        "--split",
        choices=["train", "val", "test"],
        default="train",
        help="of the previewed episodes (default: train)",
    )
    parser.add_argument(
        "--tasks",
        type=int,
        choices=range(1, 13),
        default=3,
        metavar="N",
        help="how many to draw, 1 to 12 (default: 3)",
    )
    parser.add_argument(
        "--png", metavar="FILE", type=picture, help="where to draw them (default: NAME_SPLIT.png)"
    )
    add_config_dir(parser)


def known_action(word: str) -> str:
    if word not in ACTIONS:
        meant = closest(word, ACTIONS)
        raise ConfigError(
            f"metalearn data {word} does not exist; "
            + (f"did you mean {meant}?" if meant else f"choose one of {', '.join(ACTIONS)}")
        )
    return word


def picture(word: str) -> Path:
    if Path(word).is_dir() or Path(word).suffix != ".png":
        reason = "is a folder" if Path(word).is_dir() else "does not end in .png"
        raise ConfigError(f"--png {word} {reason}; name a file, as in --png episodes.png")
    return Path(word)
