"""What the runs of a recipe were made by: which code, machine and plan; and the folder in which the run of
today's code is, or is to be. Nothing here needs torch before it is called.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from metalearn.config.saved import read_saved
from metalearn.config.schema import show
from metalearn.rundir.reader import read_json, state
from metalearn.sweep.jobs import Job

DIRTY = "-dirty"


def code_now() -> str:
    """The commit of this checkout, with -dirty where files differ from it; the release outside of a clone."""
    from metalearn.rundir.environment import PACKAGES, commit

    return commit() or f"release-{version(PACKAGES[0])}"


def code_of(env: Mapping[str, Any]) -> str:
    """The same of a run, by its env.json."""
    from metalearn.rundir.environment import PACKAGES, commit_of

    release = (env.get("versions") or {}).get(PACKAGES[0])
    return commit_of(env) or (f"release-{release}" if release else "unknown")


def folder_for(base: Path, now: str, *, reuse: bool) -> Path:
    """The folder of the run that is to be judged, finished or not: base, or one beside it named after `now`.

    A finished run counts only if it is of today's code, to the byte; one that was stopped goes on if it
    is of that commit. reuse: whichever finished last, and else whichever was begun, whatever its code.
    """
    if reuse:
        begun = [folder for folder in sorted(base.parent.glob(f"{base.name}*")) if is_one_of(folder, base)]
        finished = [folder for folder in begun if state(folder) == "finished"]
        return max(finished or begun or [base], key=when)
    for folder in names(base, now):
        if not has_begun(folder):
            return folder
        env = read_json(folder / "env.json")
        if state(folder) == "finished":
            if code_of(env or {}) == now and not now.endswith(DIRTY):
                return folder
        elif env is None or code_of(env) == now:  # without env.json nothing was computed
            return folder
    raise AssertionError("names of folders do not end")


def names(base: Path, now: str) -> Iterator[Path]:
    yield base
    own = f"{base.name}-{now}"
    yield base.with_name(own)
    yield from (base.with_name(f"{own}-{number}") for number in itertools.count(2))


def is_one_of(folder: Path, base: Path) -> bool:
    """Not another seed, as seed-1 and seed-10, and not what a figure trains otherwise, as seed-1_lr-0.1."""
    rest = folder.name.removeprefix(base.name)
    return has_begun(folder) and (not rest or rest.startswith("-"))


def has_begun(folder: Path) -> bool:
    return (folder / "config.yaml").exists()


def when(folder: Path) -> float:
    """When a run finished, or was begun; -1 of one that was not."""
    places = (folder / "results.json", folder / "config.yaml")
    return next((place.stat().st_mtime for place in places if place.exists()), -1.0)


def provenance(
    firsts: Sequence[Job], every: Sequence[Job], trained: Sequence[Job], now: str
) -> dict[str, Any]:
    """Which runs a record is of, for as long as they lie where they were made.

    What was trained by this command is of `now`: a record that it wrote before makes no other code of it.
    """
    commits = [now if job in trained else code_of(env_of(job)) for job in every]
    return {
        "date": max(made(job) for job in firsts)[:10],
        "commit": " ".join(dict.fromkeys(commits)),
        "machine": "; ".join(dict.fromkeys(machine_of(env_of(job)) for job in firsts)),
        "runs": [job.folder.name for job in every],
    }


def is_recorded(facts: Mapping[str, Any], seeds: tuple[int, ...], record: Mapping[str, Any]) -> bool:
    """Whether these finished runs are those that the record was made of."""
    then = {key: str(record[key]) if key == "date" else record[key] for key in facts if key in record}
    return tuple(record["seeds"]) == seeds and all(facts[key] == value for key, value in then.items())


def made(job: Job) -> str:
    """When and by which commit a finished run was made."""
    day = date.fromtimestamp((job.folder / "results.json").stat().st_mtime).isoformat()
    return f"{day}, commit {code_of(env_of(job))}"


def machine_of(env: Mapping[str, Any]) -> str:
    hardware, versions = env.get("hardware") or {}, env.get("versions") or {}
    names = [hardware.get("gpu") or hardware.get("cpu"), f"torch {versions.get('torch')}"]
    return ", ".join(str(name) for name in names)


def plan_of(jobs: Sequence[Job]) -> str:
    """How the runs were computed, on which bits depend."""
    found = []
    for job in jobs:
        device = {key: value for key, value in read_saved(job.folder)["device"].items() if key != "name"}
        hardware = env_of(job).get("hardware") or {}
        facts = {**device, "threads": hardware.get("threads"), "device": hardware.get("device")}
        found.append(" ".join(f"{key}={show(value)}" for key, value in facts.items()))
    return "; ".join(dict.fromkeys(found))


def env_of(job: Job) -> dict[str, Any]:
    return read_json(job.folder / "env.json") or {}
