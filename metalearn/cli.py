"""The command line: verbs, exit codes, and one clean line for everything that goes wrong.

Torch is imported only once the configuration is known to be right, so that help, listings, completion and mistakes
answer at once.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from metalearn import completion, listing, slurm, worker
from metalearn.errors import ConfigError, MetalearnError
from metalearn.launcher import launched
from metalearn.schema import closest
from metalearn.terminal import complain, complain_unexpected, patient_streams, say_error

OVERRIDES = "key=value to set, group=name to choose; `metalearn ls` lists the choices, `metalearn show NAME` the keys"
RUN_DIR = "folder of a run; `metalearn ls runs` lists them"


class Parser(argparse.ArgumentParser):
    """argparse that reports mistakes as ConfigError instead of printing and leaving."""

    def error(self, message: str) -> NoReturn:
        # Overrides are never required, but argparse names them as soon as something else is missing.
        raise ConfigError(f"{message.removesuffix(', OVERRIDE')}; see: {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # a help text on a full disk
        super().exit(status, message)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    with patient_streams():
        args = argparse.Namespace(run_dir=None)
        try:
            code = dispatch(words, args)
            sys.stdout.flush()  # here, so that a full disk is still answered below
            return code
        except MetalearnError as error:
            return complain(error)
        except SystemExit as stop:  # argparse after --help
            return int(stop.code or 0)
        except KeyboardInterrupt:
            say_error("interrupted")
            return 130
        except Exception as error:  # noqa: BLE001 - the last line of defence: a person never sees a traceback
            return complain_unexpected(error, args.run_dir)


def dispatch(words: list[str], args: argparse.Namespace) -> int:
    """Run the verb that the first word names."""
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help"):
        print(overview())
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"metalearn {version('metalearn-runner')}")
        return 0
    if verb not in VERBS:
        meant = closest(verb, VERBS)
        question = f"did you mean metalearn {meant}?" if meant else f"choose from {', '.join(VERBS)}"
        raise ConfigError(f"metalearn {verb} does not exist; {question}")
    command = VERBS[verb]
    parser = Parser(prog=f"metalearn {verb}", description=inspect.getdoc(command), formatter_class=argparse.RawDescriptionHelpFormatter)
    ARGUMENTS[verb](parser)
    parser.parse_intermixed_args(words[1:], namespace=args)
    return worker.share(lambda: command(args)) if verb in RUNS else command(args)


def overview() -> str:
    lines = ["usage: metalearn VERB …   (metalearn VERB --help says more)", ""]
    lines += [f"  {verb:<11} {str(command.__doc__).splitlines()[0]}" for verb, command in VERBS.items()]
    return "\n".join([*lines, "", "start with: metalearn train"])


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
        return multirun(args.overrides, args.config_dir, print, retry_failed=args.retry_failed)
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
    build.check_machine(cfg, args.run_dir)
    return run.train(cfg, args.overrides, args.run_dir)


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
    """
    from metalearn import config

    run_dir = listing.existing_run(args.run)  # not args.run_dir: a failure of an evaluation does not belong into the run's own log
    config.reopen(config.read_saved(run_dir), args.overrides)
    from metalearn import run

    return run.evaluate_run(run_dir, args.overrides)


def run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help=RUN_DIR)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="key=value to change")


def ls(args: argparse.Namespace) -> int:
    """List what can be chosen, and the runs that exist: one line each.

    metalearn ls algo
    metalearn ls runs [FOLDER]
    """
    if args.what == "runs":
        print(listing.runs(args.folder))
    else:
        groups = [args.what] if args.what else list(listing.GROUPS)
        print("\n\n".join(listing.group(name, args.config_dir) for name in groups))
    return 0


def ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", metavar="WHAT", type=known_listing, help=f"{', '.join(listing.GROUPS)} or runs; default: all groups"
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="where to look for runs (default: outputs)")
    add_config_dir(parser)


def known_listing(word: str) -> str:
    names = [*listing.GROUPS, "runs"]
    if word not in names:
        meant = closest(word, names)
        raise ConfigError(f"metalearn ls {word}: {word} is none of {', '.join(names)}" + (f"; did you mean {meant}?" if meant else ""))
    return word


def show(args: argparse.Namespace) -> int:
    """Print the YAML of a choice, with its comments and with every reference replaced by its value.

    metalearn show maml
    metalearn show data/omniglot
    metalearn show omniglot_maml        a recipe, and the whole configuration that it makes
    """
    print(listing.show(args.name, args.config_dir), end="")
    return 0


def show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="CONFIG", help="a name that `metalearn ls` lists, or group/name")
    add_config_dir(parser)


def doctor(args: argparse.Namespace) -> int:
    """Check this installation and machine, or the folder of one run: one line each, exit 1 if any check fails.

    metalearn doctor               gradients, plans, compiler, checkpoints, data; takes some seconds
    metalearn doctor RUN_DIR       configuration, every checkpoint, measurements, result; exit 4 if no checkpoint is valid
    """
    run_dir = None if args.run is None else listing.existing_run(args.run)
    from metalearn.doctor import examine_machine, examine_run

    def say(line: str) -> None:
        print(line, flush=True)

    return examine_machine(say) if run_dir is None else examine_run(run_dir, args.overrides, say)


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN_DIR", type=Path, help=RUN_DIR)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="what a resume of the run would need, such as trusted=[mine]")


def data(args: argparse.Namespace) -> int:
    """Fetch and unpack a dataset now, or draw a few of its episodes.

    metalearn data prepare omniglot        needed only before a machine goes offline
    metalearn data preview omniglot data.way=3 --png episodes.png
    """
    from metalearn import config

    cfg = config.compose([f"data={args.name}", *args.overrides], args.config_dir)
    from metalearn import build

    build.prepare_host(cfg)
    source = build.build_source(cfg, build.build_device({"device": {"name": "cpu"}}))
    if args.action == "prepare":
        fingerprint = source.fingerprint()
        for split in ("train", "val", "test"):
            print(f"{split}: " + ", ".join(f"{key} {value}" for key, value in source.protocol(split).items()))
        print(f"data={args.name} is ready (sha256 {fingerprint})")
        return 0
    from metalearn.analysis import preview

    tasks = source.tasks(args.split, seed=cfg["eval"]["seed"], first=0, count=args.tasks)
    path = args.png or Path(f"{args.name}_{args.split}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        print(preview.episodes(path, tasks, count=args.tasks))
    except OSError as error:
        raise ConfigError(f"--png {path} cannot be written: {error.strerror or error}; choose another file") from error
    return 0


def data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", metavar="ACTION", type=known_action, help="prepare or preview")
    parser.add_argument("name", metavar="NAME", help="a dataset; `metalearn ls data` lists them")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="data.key=value")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train", help="of the previewed episodes (default: train)")
    parser.add_argument("--tasks", type=int, choices=range(1, 13), default=3, metavar="N", help="how many to draw, 1 to 12 (default: 3)")
    parser.add_argument("--png", metavar="FILE", type=picture, help="where to draw them (default: NAME_SPLIT.png)")
    add_config_dir(parser)


def known_action(word: str) -> str:
    if word not in completion.ACTIONS:
        meant = closest(word, completion.ACTIONS)
        raise ConfigError(f"metalearn data {word} does not exist; " + (f"did you mean {meant}?" if meant else "choose prepare or preview"))
    return word


def picture(word: str) -> Path:
    if Path(word).is_dir() or Path(word).suffix != ".png":
        reason = "is a folder" if Path(word).is_dir() else "does not end in .png"
        raise ConfigError(f"--png {word} {reason}; name a file, as in --png episodes.png")
    return Path(word)


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
    bench(chosen, options, args.json, lambda text: print(text, flush=True))
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


def complete(args: argparse.Namespace) -> int:
    """Print the script that gives a shell tab completion.

    eval "$(metalearn completion bash)"        in ~/.bashrc, or zsh in ~/.zshrc
    """
    if args.shell == "query":  # what the script asks; no shell
        line = os.environ.get("COMP_LINE", "")
        point = os.environ.get("COMP_POINT", "")
        print("\n".join(completion.complete(line, int(point) if point.isdecimal() else len(line), tuple(VERBS))))
    elif args.shell in completion.SHELLS:
        print(completion.script(args.shell), end="")
    else:
        raise ConfigError(f"there is no completion for {args.shell}; choose from {', '.join(completion.SHELLS)}")
    return 0


def complete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", help=" or ".join(completion.SHELLS))


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-dir", metavar="DIR", help="folder with YAMLs of your own, searched besides $METALEARN_CONFIG_DIR")


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": train,
    "resume": resume,
    "eval": evaluate,
    "ls": ls,
    "show": show,
    "doctor": doctor,
    "data": data,
    "bench": bench,
    "completion": complete,
}
RUNS = ("train", "resume", "eval")  # what several ranks can do together
ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "train": train_arguments,
    "resume": run_arguments,
    "eval": run_arguments,
    "ls": ls_arguments,
    "show": show_arguments,
    "doctor": doctor_arguments,
    "data": data_arguments,
    "bench": bench_arguments,
    "completion": complete_arguments,
}
