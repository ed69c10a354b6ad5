"""Tables for people: the end of a run, the end of a sweep, and the results in the README.

Accuracies are fractions in files and percent here. No number stands without its interval and its number of
tasks.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.errors import DataError
from metalearn.report import verdict
from metalearn.report.methods import leaves
from metalearn.rundir.reader import (
    read_metrics,
    read_results,
    read_yaml,
    shown,
    wall_seconds,
)

PLACE = ("algo", "data", "way", "shot")  # of a published figure


def grid(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows as aligned columns, the first row being the heading; columns numbered in `right` are
    right-aligned.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def closing(run_dir: Path) -> str:
    """What a finished run prints: result with interval, published figure, where the time went, what to type
    next.

    Also good for an evaluation's folder, RUN_DIR/evals/<protocol>. Raises FileNotFoundError without
    results.json.
    """
    results = read_results(run_dir / "results.json")
    if results is None:
        raise FileNotFoundError(
            f"{run_dir}/results.json not found: the run has not been evaluated. Run: metalearn resume "
            f"{run_dir}"
        )
    config = read_yaml(run_dir / "config.yaml") or {}
    parts = [protocol_line(results), metric_table(results), published_line(config, results)]
    seconds = wall_seconds(read_metrics(run_dir))
    if any(seconds.values()):
        split = " · ".join(f"{part} {spent:.1f} s" for part, spent in seconds.items())
        together = sum(seconds.values())
        parts.append(
            f"time: {split} · together {f'{together:.1f} s' if together < 60 else f'{together / 60:.1f} min'}"
        )
    if config:
        parts.append(
            "next:\n" + "\n".join(f"  {command}" for command in next_commands(run_dir, config, results))
        )
    return "\n\n".join(part for part in parts if part)


def protocol_line(results: dict[str, Any]) -> str:
    """One line that says what was measured, so that no number travels without its protocol."""
    protocol = results["protocol"]
    facts = [f"{results['algo']} on {results['data']}"] if results.get("algo") and results.get("data") else []
    facts.append(
        f"{results['split']} tasks"
        + (f", trained on {protocol['trained_on']}" if protocol.get("cross_domain") else "")
    )
    if protocol.get("way"):
        queries = "1 query" if protocol.get("query_shot") == 1 else f"{protocol.get('query_shot')} queries"
        facts.append(f"{protocol['way']}-way {protocol.get('shot')}-shot, {queries} per class")
    if "transductive" in protocol:
        facts.append("transductive" if protocol["transductive"] else "inductive")
    by = protocol.get("monitor")  # older results do not say
    by = f" by {by}" if by not in (None, results["primary"]) else ""
    facts += [
        f"checkpoint {protocol.get('checkpoint', 'best')}{by} (step {results['step']})",
        f"seed {results['seed']}",
    ]
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
    rows = [
        [
            "metric (mean ± 95% CI)",
            *(f"{name}, {results['episodes']} tasks" for name, results in found.items()),
        ]
    ]
    for metric in metrics:
        rows.append(
            [
                metric,
                *(
                    shown(metric, results) if metric in results["metrics"] else "–"
                    for results in found.values()
                ),
            ]
        )
    return "\n".join([*lines, "", grid(rows, right=range(1, len(rows[0])))])


class PublishedFigure(NamedTuple):
    """short: 98.7 %. full: with what it is of, and with the facts in which its protocol was another."""

    short: str
    full: str


def published_line(config: dict[str, Any], results: dict[str, Any]) -> str:
    """The published figures of the recipe, or else of the algorithm, that this result may be held against;
    empty without any.
    """
    known, about = published_figures(config, results)
    if not known:
        return ""
    text = f"published: {'; '.join(figure.full for figure in known)} ({about['paper']})"
    return f"{text}\ndeviation: {about['deviation'].strip()}" if about.get("deviation") else text


def published_figures(
    config: dict[str, Any], results: dict[str, Any]
) -> tuple[list[PublishedFigure], dict[str, Any]]:
    """Those of the recipe, or else of the algorithm, with the block that names their paper.

    A figure says of which method, data, ways, shots and metric it is; beside another number it would be no
    measure. Of several those are left whose protocols are nearest.
    """
    recipe = (config.get("about") or {}) if results.get("experiment") else {}
    facts = facts_of(config, results)
    found = []
    for figure in recipe.get("figures") or []:
        if figure.get("published") and comparable({**recipe, **figure}, results):
            value = f"{figure['published']}{unit_of(figure)}"
            found.append((value, f"{figure['name']} {value}", unlike(figure, facts)))
    about = recipe if found else (config.get("algo") or {}).get("about") or {}
    if not found and about.get("published") and comparable(about["published"], results):
        figure = about["published"]
        unit = str(figure.get("unit", "")).partition(" ")[0]
        found.append((f"{figure['value']} {unit}".strip(), published(figure), unlike(figure, facts)))
    nearest = min((len(other) for *_, other in found), default=0)
    return [
        PublishedFigure(
            f"{short} (other protocol)" if other else short,
            f"{full}, other protocol: {', '.join(other)}" if other else full,
        )
        for short, full, other in found
        if len(other) == nearest
    ], about


def unlike(figure: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """What is known of a published figure's protocol and was otherwise here: 'outer_steps 60000'."""
    known = figure.get("published_protocol") or {}
    return [f"{name} {verdict.shown(value)}" for name, value in known.items() if facts.get(name) != value]


def facts_of(config: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """What a published figure's protocol is compared with: the protocol of the result, then the dials of
    method, data, optimizer and trainer by their own names.
    """
    groups = [config.get(group) for group in ("data", "optimizer", "algo", "trainer")]
    dials = {key: value for group in groups if isinstance(group, dict) for key, value in leaves(group)}
    return {**dials, "eval_episodes": results["episodes"], **results["protocol"]}


def comparable(figure: dict[str, Any], results: dict[str, Any]) -> bool:
    """Whether a result is of the method, data, ways, shots and metric of a published figure."""
    if figure.get("metric", results["primary"]) != results["primary"]:
        return False
    facts = {**results["protocol"], "algo": results.get("algo"), "data": results.get("data")}
    return all(figure.get(key) == facts.get(key) for key in PLACE)


def published(figure: dict[str, Any]) -> str:
    """'98.7 % Omniglot …, table 1' of an algorithm's published figure."""
    return ", ".join(
        part for part in (f"{figure['value']} {figure.get('unit', '')}".strip(), figure.get("source")) if part
    )


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


def _by_importance(results: dict[str, Any]) -> list[str]:
    """Names of the metrics: the primary one, then the others, then the adaptation curve in its order."""
    return sorted(
        results["metrics"], key=lambda name: (name != results["primary"], "_step_" in name, natural(name))
    )


def natural(name: str) -> list[str | int]:
    """Sort key that puts step_10 after step_2, and maml_seed-10_… after maml_seed-2_…."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
