"""Tables for people: the end of a run, the end of a sweep, and the results in the README.

Accuracies are fractions in files and percent here. No number stands without its interval and its number of tasks.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.analysis.runfiles import (
    Format,
    format_of,
    holder,
    last_words,
    names_of,
    read_metrics,
    read_results,
    read_yaml,
    shown,
    state,
    wall_seconds,
)
from metalearn.choices import NAMED_IN_RESULTS
from metalearn.errors import DataError

PLACE = ("algo", "data", "way", "shot")  # of a published figure


def grid(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows as aligned columns, the first row being the heading; columns numbered in `right` are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [text.rjust(width) if i in right else text.ljust(width) for i, (text, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def closing(run_dir: Path) -> str:
    """What a finished run prints: result with interval, published figure, where the time went, what to type next.

    Also good for an evaluation's folder, RUN_DIR/evals/<protocol>. Raises FileNotFoundError without results.json.
    """
    results = read_results(run_dir / "results.json")
    if results is None:
        raise FileNotFoundError(f"{run_dir}/results.json not found: the run has not been evaluated. Run: metalearn resume {run_dir}")
    config = read_yaml(run_dir / "config.yaml") or {}
    parts = [protocol_line(results), metric_table(results), published_line(config, results)]
    seconds = wall_seconds(read_metrics(run_dir))
    if any(seconds.values()):
        split = " · ".join(f"{part} {spent:.1f} s" for part, spent in seconds.items())
        together = sum(seconds.values())
        parts.append(f"time: {split} · together {f'{together:.1f} s' if together < 60 else f'{together / 60:.1f} min'}")
    if config:
        parts.append("next:\n" + "\n".join(f"  {command}" for command in next_commands(run_dir, config, results)))
    return "\n\n".join(part for part in parts if part)


def protocol_line(results: dict[str, Any]) -> str:
    """One line that says what was measured, so that no number travels without its protocol."""
    protocol = results["protocol"]
    facts = [f"{results['algo']} on {results['data']}"] if results.get("algo") and results.get("data") else []
    facts.append(f"{results['split']} tasks" + (f", trained on {protocol['trained_on']}" if protocol.get("cross_domain") else ""))
    if protocol.get("way"):
        queries = "1 query" if protocol.get("query_shot") == 1 else f"{protocol.get('query_shot')} queries"
        facts.append(f"{protocol['way']}-way {protocol.get('shot')}-shot, {queries} per class")
    if "transductive" in protocol:
        facts.append("transductive" if protocol["transductive"] else "inductive")
    by = protocol.get("monitor")  # older results do not say
    by = f" by {by}" if by not in (None, results["primary"]) else ""
    facts += [f"checkpoint {protocol.get('checkpoint', 'best')}{by} (step {results['step']})", f"seed {results['seed']}"]
    return " · ".join(facts)


def metric_table(results: dict[str, Any]) -> str:
    """metric, mean ± 95% CI, tasks; the primary metric first."""
    rows = [["metric", "mean ± 95% CI", "tasks"]]
    for name in _by_importance(results):
        rows.append([name, shown(name, results), str(results["episodes"])])
    return grid(rows, right=(1, 2))


def beside(run_dir: Path, eval_dir: Path) -> str:
    """An evaluation under another protocol beside the run's own result, metric by metric."""
    folders = {"this protocol": eval_dir, "the run's own": run_dir}
    found, lines = {}, []
    for name, folder in folders.items():
        try:
            results = read_results(folder / "results.json")
        except DataError as error:
            lines.append(f"{name}: {error}")  # the evaluation stands, whatever became of the run's own
            continue
        if results is not None:
            found[name] = results
            lines.append(f"{name}: {protocol_line(results)}")
    metrics = _by_importance(found["this protocol"])
    rows = [["metric (mean ± 95% CI)", *(f"{name}, {results['episodes']} tasks" for name, results in found.items())]]
    for metric in metrics:
        rows.append([metric, *(shown(metric, results) if metric in results["metrics"] else "–" for results in found.values())])
    return "\n".join([*lines, "", grid(rows, right=range(1, len(rows[0])))])


def published_line(config: dict[str, Any], results: dict[str, Any]) -> str:
    """The published figures of the recipe, or else of the algorithm, that this result may be held against; empty without any.

    A figure says of which method, data, ways and shots it is; beside another number it would be no measure.
    """
    recipe = (config.get("about") or {}) if results.get("experiment") else {}
    figures = [figure for figure in recipe.get("figures") or [] if figure.get("published") and comparable({**recipe, **figure}, results)]
    known = [f"{figure['name']} {figure['published']}{unit_of(figure)}" for figure in figures]
    about = recipe if known else (config.get("algo") or {}).get("about") or {}
    if not known and about.get("published") and comparable(about["published"], results):
        known.append(published(about["published"]))
    if not known:
        return ""
    text = f"published: {'; '.join(known)} ({about['paper']})"
    return f"{text}\ndeviation: {about['deviation'].strip()}" if about.get("deviation") else text


def comparable(figure: dict[str, Any], results: dict[str, Any]) -> bool:
    """Whether a result is of the method, data, ways and shots of a published figure."""
    facts = {**results["protocol"], "algo": results.get("algo"), "data": results.get("data")}
    return all(figure.get(key) == facts.get(key) for key in PLACE)


def published(figure: dict[str, Any]) -> str:
    """'98.7 % Omniglot …, table 1' of an algorithm's published figure."""
    return ", ".join(part for part in (f"{figure['value']} {figure.get('unit', '')}".strip(), figure.get("source")) if part)


def unit_of(figure: dict[str, Any]) -> str:
    """The unit of a recipe's figure, percent where it names none, with the space before it."""
    return f" {figure.get('unit', '%')}"


def next_commands(run_dir: Path, config: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """Commands that work as they stand from the present folder."""
    folder = shlex.quote(str(run_dir))
    trusted = config.get("trusted") or []
    trust = f" {shlex.quote('trusted=[' + ','.join(trusted) + ']')}" if trusted else ""
    commands = [f"metalearn eval {folder} eval.episodes={max(2000, 2 * results['episodes'])}{trust}"]
    steps = (config.get("trainer") or {}).get("outer_steps", 0)
    if any(line["split"] == "train" for line in read_metrics(run_dir)):
        commands.append(f"metalearn resume {folder} trainer.outer_steps={2 * steps}{trust}")
    if (run_dir / "plots").is_dir():
        commands.append(f"ls {shlex.quote(str(run_dir / 'plots'))}")
    return commands


class Job(NamedTuple):
    """One job of a sweep. state: as runfiles.state says, or unreadable. primary, mean and ci95 are None without a result.

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


def jobs(sweep_dir: Path) -> list[Job]:
    """The jobs in a sweep's folder, whether they ever started or not, in the natural order of their names."""
    found = [folder for folder in sweep_dir.iterdir() if (folder / "overrides.yaml").exists()]
    return [_job(folder) for folder in sorted(found, key=lambda folder: _natural(folder.name))]


def _job(folder: Path) -> Job:
    now = state(folder)
    reason = last_words(folder) if now == "failed" else f"process {holder(folder)}" if now == "running" else ""
    try:
        overrides = read_yaml(folder / "overrides.yaml")
        if not isinstance(overrides, list):
            raise ValueError("overrides.yaml is no list of words")
        minutes = sum(wall_seconds(read_metrics(folder)).values()) / 60
        results = read_results(folder / "results.json")
    except (DataError, OSError, ValueError) as error:
        return Job(folder, [], "unreadable", None, None, None, 0.0, " ".join(str(error).split()))
    primary = results["primary"] if results else None
    value = results["metrics"][primary] if results else {"mean": None, "ci95": None}
    words, form = [str(word) for word in overrides], format_of(primary, results) if primary else Format()
    return Job(folder, words, now, primary, value["mean"], value["ci95"], minutes, reason, form, names_of(folder))


def sweep(sweep_dir: Path) -> str:
    """One line per job, why some failed, then mean and spread over seeds wherever two or more jobs differ in nothing else.

    Overrides that all jobs share are said once, above the table.
    """
    found = jobs(sweep_dir)
    shared = [word for word in found[0].overrides if len(found) > 1 and all(word in job.overrides for job in found)] if found else []
    rows = [["overrides", "state", "result ± 95% CI", "minutes", "folder"]]
    for job in found:
        rows.append([_words(job.overrides, shared), job.state, _result(job), f"{job.minutes:.1f}", str(job.folder)])
    same = [*common_names(found, shared), *shared]
    parts = [f"in all jobs: {' '.join(same)}"] if same else []
    parts.append(grid(rows, right=(2, 3)))
    parts.append("\n".join(f"{job.state}: {job.folder}: {job.reason}" for job in found if job.state in ("failed", "unreadable")))
    return "\n\n".join(part for part in [*parts, seed_spread(found, shared)] if part)


def common_names(found: list[Job], shared: Sequence[str]) -> list[str]:
    """The choices that all jobs of a sweep have in common, but for those that are said in their words."""
    begun = [job.names for job in found if job.names]
    groups = [group for group in NAMED_IN_RESULTS if begun and begun[0][group] and all(names[group] == begun[0][group] for names in begun)]
    said = {word.partition("=")[0] for job in found for word in job.overrides}
    return [f"{group}={begun[0][group]}" for group in groups if group not in said]


def seed_spread(found: list[Job], shared: Sequence[str] = ()) -> str:
    """Mean and standard deviation over seeds of the jobs' results; empty when no two jobs differ by their seed alone."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in found:
        if job.mean is not None:
            groups.setdefault(tuple(sorted(word for word in job.overrides if not word.startswith("seed="))), []).append(job)
    rows = [["overrides", "seeds", "mean over seeds", "standard deviation"]]
    for members in groups.values():
        means = [job.mean for job in members if job.mean is not None]
        if len(means) > 1:
            name, form = members[0].primary or "", members[0].form
            spread = form.shown(statistics.stdev(means))
            words = [word for word in members[0].overrides if not word.startswith("seed=")]
            rows.append([_words(words, shared), str(len(means)), f"{name} {form.shown(statistics.fmean(means))}", spread])
    return grid(rows, right=(1, 2, 3)) if len(rows) > 1 else ""


def sweep_csv(sweep_dir: Path) -> str:
    """The content of sweep.csv: one line per job, accuracies as fractions, empty cells where there is no result."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", "overrides", "status", "primary", "mean", "ci95", "minutes", "folder", "reason", *NAMED_IN_RESULTS])
    for job in jobs(sweep_dir):
        cells = [job.state, job.primary, job.mean, job.ci95, f"{job.minutes:.2f}", str(job.folder), job.reason]
        cells += [job.names.get(group) for group in NAMED_IN_RESULTS]
        writer.writerow([job.folder.name, shlex.join(job.overrides), *("" if cell is None else cell for cell in cells)])
    return text.getvalue()


def _words(overrides: Sequence[str], shared: Sequence[str]) -> str:
    return " ".join(word for word in overrides if word not in shared) or "(defaults)"


def _result(job: Job) -> str:
    return "" if job.primary is None else f"{job.primary} {job.form.shown(job.mean, job.ci95)}"


def _by_importance(results: dict[str, Any]) -> list[str]:
    """Names of the metrics: the primary one, then the others, then the adaptation curve in its order."""
    return sorted(results["metrics"], key=lambda name: (name != results["primary"], "_step_" in name, _natural(name)))


def _natural(name: str) -> list[str | int]:
    """Sort key that puts step_10 after step_2, and maml_seed-10_… after maml_seed-2_…."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
