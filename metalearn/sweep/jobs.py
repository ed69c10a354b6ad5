"""The jobs of a sweep: the configuration of each, the folder that it names, and whether there is anything
left to do.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from metalearn.config import schema
from metalearn.config.compatibility import first_name, gained
from metalearn.config.compose import compose
from metalearn.config.hydra_parts import Override, RangeSweep
from metalearn.config.loader import Library
from metalearn.config.saved import defaults, read_with_newer
from metalearn.errors import ConfigError, DataError, MetalearnError, raise_all
from metalearn.rundir import choices, reader
from metalearn.rundir.choices import GROUPS

# What may differ between two commands for the same job: where things lie, whose classes it may use, whether
# it only rehearses.
NOT_IDENTITY = ("run_dir", "data.cache_dir", "trusted", "trainer.dry_run")
FOR_RESUME = ("trusted", "trainer.dry_run")  # what a run folder does not keep
LONGEST_NAME = 60
MOST_JOBS = 10_000
JOBS = "*_" + 8 * "[0-9a-f]" + "/overrides.yaml"  # what every job has in a sweep's folder


@dataclass(frozen=True)
class Job:
    """number: its place in the command, from 1. words: its overrides. own: those that tell it from the other
    jobs.

    cfg: the configuration that the words compose. folder: of its run, which need not exist yet.
    """

    number: int
    words: list[str]
    own: list[str]
    cfg: dict[str, Any]
    folder: Path

    @property
    def state(self) -> str:
        return reader.state(self.folder)

    @property
    def rehearses(self) -> bool:
        return bool(self.cfg["trainer"]["dry_run"])

    @property
    def has_begun(self) -> bool:
        """Whether the folder holds a run, which can be resumed."""
        return (self.folder / "config.yaml").exists()

    @property
    def words_for_resume(self) -> list[str]:
        return [word for word in self.words if word.partition("=")[0] in FOR_RESUME]

    def why_skipped(self) -> str:
        """What the sweep says of a job that it leaves alone."""
        state = self.state
        if state == "running":
            return f"running in process {reader.holder(self.folder)}, skipped"
        if state == "failed":
            return (
                f"failed earlier, left alone ({reader.last_words(self.folder)}); --retry-failed runs it again"
            )
        changes = self.changes_by_hand()
        return (
            f"finished, skipped (but changed by hand since: {', '.join(changes)})"
            if changes
            else "finished, skipped"
        )

    def changes_by_hand(self) -> list[str]:
        """Keys that a resume from the command line has given other values.

        What a plan was chosen to be is no change, nor is the value of a key that the run is older than.
        """
        try:
            cfg, newer = read_with_newer(self.folder)
            saved = dict(schema.leaves(cfg))
        except ConfigError:
            return ["config.yaml is damaged"]
        wanted = dict(schema.leaves(self.cfg))
        keys = [
            key
            for key in wanted
            if key not in {*NOT_IDENTITY, *newer} and not key.startswith(("device.", f"{choices.KEY}."))
        ]
        return [f"{key}={schema.show(saved.get(key))}" for key in keys if saved.get(key) != wanted[key]]


def is_left(job: Job, retry_failed: bool) -> bool:
    """Whether this command has anything to do for the job."""
    return job.state not in ("finished", "running", *(() if retry_failed else ("failed",)))


def planned(words: list[str], config_dir: str | None, folder: Path) -> tuple[list[Job], int]:
    """The jobs of a command line, checked, and how many of its combinations were no further job.

    Raises one error with everything that is wrong with any of them, and with Hydra's own settings.
    """
    own = [word for word in words if word.startswith("hydra")]
    combinations, swept = expand([word for word in words if not word.startswith("hydra")], config_dir)
    cfgs = check_all(
        {n: functools.partial(compose, [*own, *words], config_dir) for n, words in enumerate(combinations, 1)}
    )
    jobs: dict[str, Job] = {}
    for combination, cfg in zip(combinations, cfgs, strict=True):
        key = identity(cfg)
        if key not in jobs:
            own_words = [word for word in combination if word.partition("=")[0] in swept] or combination
            jobs[key] = Job(len(jobs) + 1, combination, own_words, cfg, folder_of(folder, key, own_words))
    return list(jobs.values()), len(combinations) - len(jobs)


def expand(overrides: list[str], config_dir: str | None) -> tuple[list[list[str]], set[str]]:
    """The overrides of every job, in the order in which Hydra's own sweeper takes them, and the keys that are
    swept over.
    """
    axes: dict[str, list[str]] = {}
    swept = set()
    for override in Library(config_dir).parse(overrides):
        key = override.get_key_element()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.input_line}: only lists, choice(), range() and glob() can be swept over"
            )
        if override.is_sweep_override():
            axes[key] = [f"{key}={value}" for value in values_of(override)]
            swept.add(key)
        else:
            axes[key] = [f"{key}={override.get_value_element_as_str()}"]
    count = math.prod(map(len, axes.values()))
    if count > MOST_JOBS:
        raise ConfigError(
            f"these words make {count} jobs; a sweep has at most {MOST_JOBS}, so sweep over fewer values at "
            "once"
        )
    return [list(job) for job in itertools.product(*axes.values())], swept


def values_of(override: Override) -> list[str]:
    """What a swept key takes in turn. ConfigError for no value, for more than a sweep could have, and for a
    range that leads nowhere.
    """
    swept = override.value()
    try:
        if (
            isinstance(swept, RangeSweep)
            and abs((swept.stop or 0) - (swept.start or 0)) / abs(swept.step) > MOST_JOBS
        ):
            raise ConfigError(
                f"{override.input_line} has more than {MOST_JOBS} values, the most that a sweep can take"
            )
        found = list(itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))
    except (HydraException, ValueError, ArithmeticError, OverflowError, AssertionError) as error:
        raise ConfigError(
            f"{override.input_line} cannot be swept over ({str(error) or type(error).__name__}); list the "
            "values: a,b,c"
        ) from error
    if not found:
        raise ConfigError(f"{override.input_line} has no value to sweep over; list the values: a,b,c")
    return found


def identity(cfg: dict[str, Any]) -> str:
    """Eight hex digits of a sha256 over everything in a configuration that results or records may follow
    from.

    Neither what a logger shows nor the names of what was chosen are among them. A key that an older run may
    lack counts only with another value than its default, so that a new key makes no new jobs. A key that was
    renamed counts under its first name.
    """
    leaves = dict(
        schema.leaves({key: value for key, value in cfg.items() if key not in ("logger", choices.KEY)})
    )
    known = {**defaults(), **gained(leaves)}
    suits = (cfg["algo"].get("about") or {}).get("suits") or {}  # which stood among the arguments once
    facts = {f"algo.{key}": value for key, value in suits.items()} | {
        first: then
        for key, value in leaves.items()
        if key not in NOT_IDENTITY and (key not in known or known[key] != value)
        for first, then in [first_name(key, value)]
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def folder_of(sweep_dir: Path, key: str, own_words: Sequence[str]) -> Path:
    """The folder of a job: the one that has its key already, whatever was swept over then, or a new one."""
    found = sorted(path for path in sweep_dir.glob(f"*_{key}") if path.is_dir())
    return found[0] if found else sweep_dir / f"{readable(own_words)}_{key}"


def readable(words: Sequence[str]) -> str:
    """Overrides as the beginning of a file name: maml_seed-0_inner_lr-0.01."""
    pairs = [word.partition("=")[::2] for word in words]
    names = [key.partition(".")[2] or key for key, _ in pairs]
    parts = []
    for (key, value), name in zip(pairs, names, strict=True):
        text = re.sub(r"[^A-Za-z0-9_.+-]+", "-", value.strip("[]{}'\"/ ")).rstrip("-.")
        parts.append(text if key in GROUPS else f"{key if names.count(name) > 1 else name}-{text}")
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", "_".join(parts))[:LONGEST_NAME].strip("-._") or "job"


def machine_check(left: Sequence[Job], num_jobs: int) -> Any:
    """Raise for what the machine and the data say against the jobs that will run. Returns what was built for
    it, for these jobs.
    """
    if not left:
        return None
    from metalearn.build.checks import Prebuilt, check_machine

    prebuilt = Prebuilt()
    check_all(
        {job.number: functools.partial(check_machine, job.cfg, job.folder, prebuilt) for job in left},
        num_jobs,
    )
    return prebuilt


def check_all(checks: Mapping[int, Callable[[], Any]], num_jobs: int | None = None) -> list[Any]:
    """What the checks return. Every different problem is raised once, with the numbers of the jobs that have
    it unless all do.

    checks: by the number of the job. num_jobs: how many the command has, if some need no check.
    """
    results = []
    found: dict[tuple[type[MetalearnError], str], list[int]] = {}
    for number, check in checks.items():
        try:
            results.append(check())
        except (ConfigError, DataError) as error:
            for problem in dict.fromkeys(getattr(error, "problems", str(error).splitlines())):
                found.setdefault((type(error), problem), []).append(number)
    errors = []
    for (kind, problem), numbers in found.items():
        jobs = f"job {numbers[0]}" if len(numbers) == 1 else f"jobs {', '.join(map(str, numbers))}"
        errors.append(
            kind(
                problem if len(numbers) == len(checks) else f"{problem} ({jobs} of {num_jobs or len(checks)})"
            )
        )
    raise_all(errors)
    return results
