"""A recipe trained and judged again, and its figures held against what it gave before and what was published.

Every seed has a run of its own under outputs/reproduce/NAME/TIER, which goes on where it was stopped. Once it
is finished it is not trained again by the same code; another commit has a run of its own.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.config.compose import compose
from metalearn.config.records import recorded, rounded
from metalearn.config.saved import read_saved
from metalearn.config.schema import hint
from metalearn.errors import ConfigError, MetalearnError
from metalearn.report import verdict
from metalearn.report.tables import facts_of
from metalearn.report.verdict import Measured, Ours, Published
from metalearn.rundir.reader import (
    format_of,
    read_metrics,
    read_results,
    wall_seconds,
)
from metalearn.sweep.jobs import Job, is_left, machine_check, readable
from metalearn.sweep.provenance import code_now, folder_for, is_recorded, made, plan_of, provenance
from metalearn.sweep.recipes import Recipe

log = logging.getLogger(__name__)

ROOT = Path("outputs/reproduce")


class StoppedError(MetalearnError):
    """A run was asked to stop, and has saved."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


class FigureVerdicts(NamedTuple):
    """measured: in the unit of the figure. record: of the same figure, None if there is none."""

    name: str
    unit: str
    measured: Measured
    episodes: int
    record: Measured | None
    figure: float | None
    ours: Ours
    published: Published

    def as_json(self) -> dict[str, Any]:
        both = {"ours": self.ours._asdict(), "published": self.published._asdict()}
        record = None if self.record is None else self.record._asdict()
        return {**self._asdict(), "measured": self.measured._asdict(), "record": record, **both}


class Reproduction(NamedTuple):
    """record: what `about.measured` is to say of this tier from now on. commit_now: of the code of today."""

    recipe: str
    tier: str
    folders: list[Path]
    figures: list[FigureVerdicts]
    record: dict[str, Any]
    commit_now: str

    @property
    def verdict(self) -> str:
        """The worst of the figures' own."""
        found = [figure.ours.verdict for figure in self.figures]
        order = (verdict.FAIL, verdict.INCONCLUSIVE, verdict.NO_RECORD)
        return next((word for word in order if word in found), verdict.PASS)

    def as_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "tier": self.tier,
            "verdict": self.verdict,
            "folders": [str(folder) for folder in self.folders],
            **{key: value for key, value in self.record.items() if key != "figures"},
            "commit_now": self.commit_now,
            "figures": [figure.as_json() for figure in self.figures],
        }


def reproduce(
    recipe: Recipe,
    tier: str,
    num_seeds: int | None = None,
    *,
    now: str | None = None,
    reuse: bool = False,
) -> Reproduction:
    """Train what is left of a recipe, judge all of its figures, and give both verdicts on each.

    num_seeds: as many as are recorded, at least one, if None. now: the code of today, as it was before a
    record changed a file. reuse: finished runs count whatever code they are of. Raises StoppedError for a run
    that was stopped or failed.
    """
    now = now or code_now()
    figures = recipe.about.get("figures") or []
    if not figures:
        raise ConfigError(
            f"experiment={recipe.name} names no figures to reproduce; its first steps are compared with: "
            f"metalearn reproduce {recipe.name} --tier smoke"
        )
    record = recorded(recipe.about, tier)
    num_seeds = num_seeds or (len(record["seeds"]) if record else 1)
    jobs = planned(recipe, tier, num_seeds, now, reuse=reuse)
    every = [job for seed in jobs.values() for job in seed.values()]
    trained = train_all(every)
    results = {
        figure["name"]: [
            judged(seed[tuple(figure.get("train") or ())], figure, recipe) for seed in jobs.values()
        ]
        for figure in figures
    }
    firsts = [next(iter(seed.values())) for seed in jobs.values()]
    plan = plan_of(every)
    facts = provenance(firsts, every, trained, now)
    itself = record is not None and not trained and is_recorded(facts, tuple(jobs), record)
    found = []
    for figure in figures:
        first = jobs[next(iter(jobs))][tuple(figure.get("train") or ())]
        own = verdicts(figure, results[figure["name"]], first, tuple(jobs), plan, record)
        found.append(of_itself(own, every) if itself else own)
    new = record_of(firsts, tuple(jobs), plan, found, facts)
    return Reproduction(recipe.name, tier, [job.folder for job in every], found, new, now)


def planned(
    recipe: Recipe, tier: str, num_seeds: int, now: str, *, reuse: bool = False
) -> dict[int, dict[tuple[str, ...], Job]]:
    """The runs of a recipe, by seed and by what a figure trains differently, for the code of `now`.
    ConfigError if a folder holds another run.
    """
    words = recipe.for_tier(tier)
    ways = dict.fromkeys(tuple(figure.get("train") or ()) for figure in recipe.about["figures"])
    cfgs = {
        own: dict(recipe.cfg) if not own and tier == "cpu" else compose([*words, *own], recipe.config_dir)
        for own in ways
    }
    first = next(iter(cfgs.values()))["seed"]
    jobs: dict[int, dict[tuple[str, ...], Job]] = {}
    for seed in range(first, first + num_seeds):
        for own, cfg in cfgs.items():
            all_words = [*words, *own, f"seed={seed}"]
            name = f"seed-{seed}" + (f"_{readable(own)}" if own else "")
            job = Job(
                1 + sum(map(len, jobs.values())),
                all_words,
                [*own, f"seed={seed}"],
                cfg if cfg["seed"] == seed else compose(all_words, recipe.config_dir),
                folder_for(ROOT / recipe.name / tier / name, now, reuse=reuse),
            )
            changes = job.changes_by_hand() if job.has_begun else []
            if changes:
                raise ConfigError(
                    f"{job.folder} holds a run of another configuration than the recipe has now "
                    f"({', '.join(changes)}); move or remove that folder"
                )
            jobs.setdefault(seed, {})[own] = job
    return jobs


def train_all(jobs: Sequence[Job]) -> list[Job]:
    """Train or go on with every run that is not finished, one after the other; those that were not."""
    left = [job for job in jobs if is_left(job, retry_failed=True) or job.state == "running"]
    for job in jobs:
        if job not in left:
            log.info(f"{job.folder} is finished, of {made(job)}")
    prebuilt = machine_check(left, len(jobs))
    if not left:
        return []
    from metalearn.run import slurm
    from metalearn.sweep.launching import begin_or_go_on

    for job in left:
        log.info(f"{'going on with' if job.has_begun else 'training'} {job.folder}")
        code = begin_or_go_on(job, slurm.requeue, prebuilt)
        if code:
            raise StoppedError(
                f"{job.folder} was stopped with exit code {code}; the same command goes on from there", code
            )
    return left


def judged(job: Job, figure: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The results that a figure is read from: the run's own, or of an evaluation, which is done once."""
    words = list(figure.get("eval") or [])
    folder = job.folder
    if words:
        from metalearn.run.evaluate import evaluate_run
        from metalearn.run.folder import evaluation_folder

        words += [word for word in recipe.words if word.startswith("trusted=")]
        folder = evaluation_folder(job.folder, words, recipe.config_dir)
        if not (folder / "results.json").exists():
            log.info(f"judging {job.folder}: {' '.join(words)}")
            code = evaluate_run(job.folder, words, recipe.config_dir)
            if code:
                raise StoppedError(f"the evaluation of {job.folder} was stopped", code)
    results = read_results(folder / "results.json")
    if results is None:
        raise MetalearnError(f"{folder} has no results.json, though it was judged; remove it and try again")
    metric = figure.get("metric") or results["primary"]
    if metric not in results["metrics"]:
        known = results["metrics"]
        raise ConfigError(
            f"figure {figure['name']} of experiment={recipe.name} is of metric={metric}, which {folder} does "
            f"not have{hint(metric, known)}; metrics: {', '.join(known)}"
        )
    return results


def verdicts(
    figure: Mapping[str, Any],
    results: Sequence[dict[str, Any]],
    job: Job,
    seeds: tuple[int, ...],
    plan: str,
    record: Mapping[str, Any] | None,
) -> FigureVerdicts:
    """Both verdicts on a figure. results: of every seed. job: the run of the first seed."""
    metric = figure.get("metric") or results[0]["primary"]
    values = [result["metrics"][metric] for result in results]
    scale = format_of(metric, results[0]).scale
    new = Measured(
        statistics.fmean(number(value["mean"]) for value in values) * scale,
        statistics.fmean(number(value["ci95"]) for value in values) * scale,
        statistics.stdev(number(value["mean"]) for value in values) * scale if len(values) > 1 else None,
        seeds,
        plan,
    )
    before = of_record(record, figure["name"])
    if before is None:
        own = Ours(verdict.NO_RECORD, "nothing is recorded for this tier; record it with --record")
    else:
        own = verdict.ours(new, before)
    form = (results[0].get("formats") or {}).get(metric) or {}
    theirs = verdict.published(
        figure.get("published"),
        figure.get("published_protocol") or {},
        facts_of(read_saved(job.folder), results[0]),
        new,
        higher_is_better=form.get("higher_is_better"),
    )
    return FigureVerdicts(
        figure["name"],
        figure.get("unit", "%"),
        new,
        results[0]["episodes"],
        before,
        figure.get("published"),
        own,
        theirs,
    )


def number(value: float | None) -> float:
    """null stands for a number that JSON cannot write."""
    return float("nan") if value is None else value


def of_record(record: Mapping[str, Any] | None, name: str) -> Measured | None:
    found = ((record or {}).get("figures") or {}).get(name)
    if record is None or found is None:
        return None
    return Measured(
        found["mean"], found["ci95"], found.get("std"), tuple(record["seeds"]), record.get("plan")
    )


def of_itself(found: FigureVerdicts, jobs: Sequence[Job]) -> FigureVerdicts:
    """A run that is held against itself passes, whatever the code gives now."""
    if found.ours.verdict != verdict.PASS:
        return found
    folders = " and ".join(str(job.folder) for job in jobs)
    reason = f"this is the recorded run, which says nothing new; move or remove {folders} to train it again"
    return found._replace(ours=Ours(verdict.INCONCLUSIVE, reason, found.ours.difference))


def record_of(
    jobs: Sequence[Job],
    seeds: tuple[int, ...],
    plan: str,
    found: Sequence[FigureVerdicts],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The record that these runs make. jobs: one run of each seed. facts: their `provenance`."""
    lines = [[line for line in read_metrics(job.folder) if line["split"] in ("train", "val")] for job in jobs]
    trained = any(line["split"] == "train" for line in lines[0])
    return {
        "seeds": list(seeds),
        "steps": jobs[0].cfg["trainer"]["outer_steps"] if trained else 0,
        "minutes": round(statistics.fmean(sum(wall_seconds(of).values()) for of in lines) / 60, 1),
        **facts,
        "plan": plan,
        "figures": {
            one.name: {
                **rounded(one.measured.mean, one.measured.ci95, one.measured.std),
                "episodes": one.episodes,
            }
            for one in found
        },
    }
