"""data: fetch a dataset, draw episodes of it, write down its tasks, or say what is wrong with it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metalearn.cli.arguments import add_config_dir
from metalearn.config.schema import closest
from metalearn.errors import ConfigError
from metalearn.rundir.reader import existing_run

ACTIONS = ("prepare", "preview", "lock", "audit")


def run(args: argparse.Namespace) -> int:
    """Fetch and unpack a dataset now, draw a few of its episodes, write down its tasks, or audit it.

    metalearn data prepare omniglot        needed only before a machine goes offline
    metalearn data preview omniglot data.way=3 --png episodes.png
    metalearn data lock omniglot data.way=20 eval.episodes=1000 --output tasks.jsonl
    metalearn data lock RUN_DIR     the tasks that a run was judged on; eval.tasks=FILE takes exactly these
    metalearn data audit FOLDER     duplicates, classes in two splits, odd files …: a table, and a page with
                                    pictures; exit 3 for an error, such as content that splits share
    """
    cfg = composed(args)
    act = {"prepare": prepare, "preview": preview, "lock": lock, "audit": audit}[args.action]
    return act(args, cfg)


def prepare(args: argparse.Namespace, cfg: dict[str, Any]) -> int:
    """Fetch, verify and cache the data, and say what is in each split."""
    source = built(cfg)
    source.check(("train", "val", "test"))
    fingerprint = source.fingerprint()
    for split in ("train", "val", "test"):
        print(f"{split}: " + ", ".join(f"{key} {value}" for key, value in source.protocol(split).items()))
    print(f"data={args.name} is ready (sha256 {fingerprint})")
    return 0


def preview(args: argparse.Namespace, cfg: dict[str, Any]) -> int:
    """Draw a few episodes."""
    source = built(cfg)
    from metalearn.report.episodes import episodes

    tasks = source.tasks(args.split, seed=cfg["eval"]["seed"], first=0, count=args.tasks)
    path = args.png or Path(f"{args.name}_{args.split}.png")
    with writing("--png", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        print(episodes(path, tasks, count=args.tasks))
    return 0


def lock(args: argparse.Namespace, cfg: dict[str, Any]) -> int:
    """Write the list of tasks that an evaluation of this configuration meets."""
    from metalearn.run.lock import write_tasks

    run_dir = Path(args.name) if Path(args.name).is_dir() else None
    path = args.output or Path(f"{Path(args.name).resolve().name}_{cfg['eval']['split']}.jsonl")
    with writing("--output", path):
        print(write_tasks(cfg, path, run_dir))
    return 0


def built(cfg: dict[str, Any]) -> Any:
    """The source, on the CPU."""
    from metalearn.build.device import build_device, prepare_host
    from metalearn.build.objects import build_source

    prepare_host(cfg)
    return build_source(cfg, build_device({"device": {"name": "cpu"}}))


@contextlib.contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """ConfigError for a file that cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{option} {path} cannot be written: {error.strerror or error}; choose another file"
        ) from error


def composed(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration of the dataset that is named; of the folder to audit, or of the run to lock."""
    from metalearn.config.compose import compose, reopen
    from metalearn.config.loader import Library
    from metalearn.config.saved import read_saved

    if args.action == "lock" and Path(args.name).is_dir():
        saved = read_saved(existing_run(Path(args.name)))
        return reopen(saved, args.overrides, args.config_dir, sizes=saved["data"])

    named = args.name in Library(args.config_dir).options("data")
    if named or args.action != "audit" or not (os.sep in args.name or Path(args.name).is_dir()):
        return compose([f"data={args.name}", *args.overrides], args.config_dir)
    if given := [word for word in args.overrides if word.startswith("data.root=")]:
        raise ConfigError(f"{given[0]} beside the folder {args.name}; name one of them")
    cfg = compose(["data=image_folder", *args.overrides], args.config_dir)
    cfg["data"]["root"] = args.name
    return cfg


def audit(args: argparse.Namespace, cfg: dict[str, Any]) -> int:
    """Print what is found, write the page, and answer with the exit code."""
    from metalearn.build.checks import audited
    from metalearn.report.audit import audit_page, audit_table

    name = Path(args.name).resolve().name or "root"
    path = args.html or Path(f"{name}_audit.html")
    found = audited(cfg)
    words = ["metalearn", "data", "audit", args.name, *args.overrides]
    page = audit_page(title=f"Audit of {args.name}", command=shlex.join(words), audit=found)
    with writing("--html", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    if args.json:
        print(json.dumps({**found.to_json(), "page": str(path)}, indent=1))
    else:
        print(f"{audit_table(found.findings)}\n\nwith pictures: {path}")
    return found.exit_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", metavar="ACTION", choices=ACTIONS, type=known_action, help=", ".join(ACTIONS)
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="a dataset; `metalearn ls data` lists them. lock: or a run; audit: or a folder of images",
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="data.key=value, eval.key=value")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="the tasks of lock (default: NAME_SPLIT.jsonl)"
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
    parser.add_argument(
        "--html", metavar="FILE", type=page_file, help="the page of the audit (default: NAME_audit.html)"
    )
    parser.add_argument("--json", action="store_true", help="print what the audit finds as JSON")
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
    return file_of("--png", word, ".png", "episodes.png")


def page_file(word: str) -> Path:
    return file_of("--html", word, ".html", "audit.html")


def file_of(option: str, word: str, suffix: str, example: str) -> Path:
    if Path(word).is_dir() or Path(word).suffix != suffix:
        reason = "is a folder" if Path(word).is_dir() else f"does not end in {suffix}"
        raise ConfigError(f"{option} {word} {reason}; name a file, as in {option} {example}")
    return Path(word)
