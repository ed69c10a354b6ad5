"""What a person reads of records: a table per workload, and the summary that docs/performance.md shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

START, END = "<!-- bench: made by scripts/performance -->", "<!-- /bench -->"


def table(name: str, record: Mapping[str, Any]) -> str:
    """Every system with its time, its place beside the best peer, memory and rounding; then what came of
    it.
    """
    best_peer = record["best_peer"]
    yardstick = record["systems"][best_peer]["ms_per_task"] if best_peer else None
    rows = [["", "ms per task", "range", "against best peer", "peak MB", "error", "first call"]]
    for system, found in sorted(record["systems"].items(), key=lambda item: item[1]["ms_per_task"]):
        low, high = found["ms_per_task_range"]
        rows.append(
            [
                ("" if found["ours"] else "peer: ") + system,
                number(found["ms_per_task"]),
                f"{number(low)}–{number(high)}",
                f"{yardstick / found['ms_per_task']:.2f}x" if yardstick else "–",
                number(found["peak_mb"]),
                "–" if found["error"] is None else f"{found['error']:.0e}",
                f"{found['first_call_seconds']:.1f} s",
            ]
        )
    threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    if record.get("device", "cpu") != "cpu":
        threads = f"on {record['device']}, where what is compiled runs as a CUDA graph"
    lines = [
        f"{name}: {record['title']}; {record['tasks']} tasks, median of {record['repeats']}, {threads}",
        *columns(rows),
    ]
    lines += [f"  {system} takes no part: {reason}" for system, reason in record["refused"].items()]
    return "\n".join([*lines, f"  {verdict(record)}"])


def verdict(record: Mapping[str, Any]) -> str:
    """The best of both sides, arithmetic, and where the time of an outer step goes."""
    parts = []
    if record["ratio"] is not None:
        parts.append(
            f"best plan: {record['best_plan']}, {record['ratio']:.2f}x as fast as the best peer, "
            f"{record['best_peer']}"
        )
    elif record["best_plan"]:
        parts.append(f"best plan: {record['best_plan']}; no peer to compare with")
    if record["tasks_per_second"]:
        parts.append(f"{record['tasks_per_second']:,.0f} tasks/s")
    if record["gflops"] is not None:
        parts.append(
            f"{record['gflops']:.1f} GFLOP/s, {record['percent_of_peak']:.0f}% of "
            f"{record['matmul_peak_gflops']:.0f} (matrix product, {record['matmul_precision']})"
        )
    split = record["time_split_ms_per_task"]
    if split:
        parts.append("ms per task: " + " + ".join(f"{part} {number(time)}" for part, time in split.items()))
    return "; ".join(parts)


def markdown(results: Mapping[str, Any]) -> str:
    """The summary of all workloads, and of each one every system."""
    machine = results["machine"]
    libraries = ", ".join(
        f"{name} {machine[name] or 'not installed'}"
        for name in ("torch", "higher", "torchopt", "learn2learn")
    )
    gpu = f"{machine['gpu']}, " if machine.get("gpu") else ""
    lines = [
        f"{machine['date']}, {gpu}{machine['cpu']}, {machine['num_cpus']} cores, Python {machine['python']}, "
        f"{libraries}.",
        "",
        "| Workload | Best plan | ms per task | Best peer | ms per task | Ratio | Peak MB, ours and theirs | "
        "GFLOP/s | % of matmul peak |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    records = {name: record for name, record in results.items() if "systems" in record}
    for name, record in records.items():
        ours, theirs = (record["systems"].get(record[side], {}) for side in ("best_plan", "best_peer"))
        cells = [
            f"`{name}`",
            record["best_plan"] or "–",
            number(ours.get("ms_per_task")),
            record["best_peer"] or "–",
            number(theirs.get("ms_per_task")),
            "–" if record["ratio"] is None else f"**{record['ratio']:.2f}x**",
            f"{number(ours.get('peak_mb'))}, {number(theirs.get('peak_mb'))}",
            number(record["gflops"]),
            number(record["percent_of_peak"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for name, record in records.items():
        lines += ["", "```text", table(name, record), "```"]
    return "\n".join(lines)


def fill(text: str, results: Mapping[str, Any] | None) -> str:
    """The document with the part between its marks made anew, empty without results. ValueError if it has no
    such part.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the document has no pair of marks '{START}' … '{END}'; put them around the tables")
    return (
        f"{before}{START}\n{markdown(results)}\n{END}{after}" if results else f"{before}{START}\n{END}{after}"
    )


def number(value: float | None) -> str:
    """Three digits that count; – for None."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells under each other, the first column to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
