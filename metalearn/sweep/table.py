"""The table at the end of a sweep, on the screen and as sweep.csv."""

from __future__ import annotations

import csv
import io
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metalearn.errors import DataError
from metalearn.report.tables import grid, natural
from metalearn.rundir.choices import NAMED_IN_RESULTS
from metalearn.rundir.reader import (
    Format,
    format_of,
    holder,
    last_words,
    names_of,
    read_metrics,
    read_results,
    read_yaml,
    state,
    wall_seconds,
)


class JobResult(NamedTuple):
    """One job of a sweep. state: as `metalearn.rundir.reader.state` says, or unreadable. primary, mean and
    ci95 are None without a result.

    form: how people read the primary metric.

    reason: the last words of a job that has failed, the process of one that runs, otherwise empty.
    names: what its configuration was made of; empty before it began.
    """

    folder: Path
    overrides: list[str]
    state: str
    primary: str | None
    mean: float | None
    ci95: float | None
    minutes: float
    reason: str
    form: Format = Format()
    names: dict[str, str | None] = {}


def jobs(sweep_dir: Path) -> list[JobResult]:
    """The jobs in a sweep's folder, whether they ever started or not, in the natural order of their names."""
    found = [folder for folder in sweep_dir.iterdir() if (folder / "overrides.yaml").exists()]
    return [_job(folder) for folder in sorted(found, key=lambda folder: natural(folder.name))]


def _job(folder: Path) -> JobResult:
    now = state(folder)
    reason = (
        last_words(folder) if now == "failed" else f"process {holder(folder)}" if now == "running" else ""
    )
    try:
        overrides = read_yaml(folder / "overrides.yaml")
        if not isinstance(overrides, list):
            raise ValueError("overrides.yaml is no list of words")
        minutes = sum(wall_seconds(read_metrics(folder)).values()) / 60
        results = read_results(folder / "results.json")
    except (DataError, OSError, ValueError) as error:
        return JobResult(folder, [], "unreadable", None, None, None, 0.0, " ".join(str(error).split()))
    primary = results["primary"] if results else None
    value = results["metrics"][primary] if results else {"mean": None, "ci95": None}
    words, form = [str(word) for word in overrides], format_of(primary, results) if primary else Format()
    return JobResult(
        folder, words, now, primary, value["mean"], value["ci95"], minutes, reason, form, names_of(folder)
    )


def sweep(sweep_dir: Path) -> str:
    """One line per job, why some failed, then mean and spread over seeds wherever two or more jobs differ in
    nothing else.

    Overrides that all jobs share are said once, above the table.
    """
    found = jobs(sweep_dir)
    shared = (
        [
            word
            for word in found[0].overrides
            if len(found) > 1 and all(word in job.overrides for job in found)
        ]
        if found
        else []
    )
    rows = [["overrides", "state", "result ± 95% CI", "minutes", "folder"]]
    for job in found:
        rows.append(
            [_words(job.overrides, shared), job.state, _result(job), f"{job.minutes:.1f}", str(job.folder)]
        )
    same = [*common_names(found, shared), *shared]
    parts = [f"in all jobs: {' '.join(same)}"] if same else []
    parts.append(grid(rows, right=(2, 3)))
    parts.append(
        "\n".join(
            f"{job.state}: {job.folder}: {job.reason}"
            for job in found
            if job.state in ("failed", "unreadable")
        )
    )
    return "\n\n".join(part for part in [*parts, seed_spread(found, shared)] if part)


def common_names(found: list[JobResult], shared: Sequence[str]) -> list[str]:
    """The choices that all jobs of a sweep have in common, but for those that are said in their words."""
    begun = [job.names for job in found if job.names]
    groups = [
        group
        for group in NAMED_IN_RESULTS
        if begun and begun[0][group] and all(names[group] == begun[0][group] for names in begun)
    ]
    said = {word.partition("=")[0] for job in found for word in job.overrides}
    return [f"{group}={begun[0][group]}" for group in groups if group not in said]


def seed_spread(found: list[JobResult], shared: Sequence[str] = ()) -> str:
    """Mean and standard deviation over seeds of the jobs' results; empty when no two jobs differ by their
    seed alone.
    """
    groups: dict[tuple[str, ...], list[JobResult]] = {}
    for job in found:
        if job.mean is not None:
            groups.setdefault(
                tuple(sorted(word for word in job.overrides if not word.startswith("seed="))), []
            ).append(job)
    rows = [["overrides", "seeds", "mean over seeds", "standard deviation"]]
    for members in groups.values():
        means = [job.mean for job in members if job.mean is not None]
        if len(means) > 1:
            name, form = members[0].primary or "", members[0].form
            spread = form.shown(statistics.stdev(means))
            words = [word for word in members[0].overrides if not word.startswith("seed=")]
            rows.append(
                [
                    _words(words, shared),
                    str(len(means)),
                    f"{name} {form.shown(statistics.fmean(means))}",
                    spread,
                ]
            )
    return grid(rows, right=(1, 2, 3)) if len(rows) > 1 else ""


def sweep_csv(sweep_dir: Path) -> str:
    """The content of sweep.csv: one line per job, accuracies as fractions, empty cells where there is no
    result.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "job",
            "overrides",
            "status",
            "primary",
            "mean",
            "ci95",
            "minutes",
            "folder",
            "reason",
            *NAMED_IN_RESULTS,
        ]
    )
    for job in jobs(sweep_dir):
        cells = [
            job.state,
            job.primary,
            job.mean,
            job.ci95,
            f"{job.minutes:.2f}",
            str(job.folder),
            job.reason,
        ]
        cells += [job.names.get(group) for group in NAMED_IN_RESULTS]
        writer.writerow(
            [job.folder.name, shlex.join(job.overrides), *("" if cell is None else cell for cell in cells)]
        )
    return text.getvalue()


def _words(overrides: Sequence[str], shared: Sequence[str]) -> str:
    return " ".join(word for word in overrides if word not in shared) or "(defaults)"


def _result(job: JobResult) -> str:
    return "" if job.primary is None else f"{job.primary} {job.form.shown(job.mean, job.ci95)}"
