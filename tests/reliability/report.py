"""Which test injects which fault of docs/reliability.md, how each ended, and the table of that page.

Imports nothing that pytest would like to import first.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

PHASES = ("start-up", "step", "save", "evaluation", "end")  # of a run's life
START, END = "<!-- faults: made by scripts/fault_report -->", "<!-- /faults -->"
SAME_END = (
    "weights, optimizer, random state, metrics and results bit-equal to those of a run that was never stopped"
)
# What is injected, and what a test compares to know that nothing was lost.
FAULTS: dict[int, tuple[str, str]] = {
    1: ("SIGKILL at a random moment: a run, a run of two ranks, a sweep", SAME_END),
    2: (
        "SIGKILL during a save",
        "the same; the checkpoint before is valid, and nothing half-written is left after resuming",
    ),
    3: (
        "A tensor whose write raises midway",
        "no checkpoint under its final name that is not whole; the ones before are valid",
    ),
    4: (
        "The newest checkpoint is truncated, empty or incomplete",
        "named in a warning, the one before is used; the same end, bit for bit",
    ),
    5: (
        "A bit of the newest checkpoint is flipped",
        "found by its sha256, the one before is used; the same end, bit for bit",
    ),
    6: (
        "Every checkpoint is bad",
        "exit 4 and all of them named; no silent start from step 0, no file changed",
    ),
    7: (
        "The disk is full at a save",
        "one clear line, the checkpoints before are valid; training goes on to the next save, exit 1 after "
        "three in a row",
    ),
    8: (
        "The run folder is a file, below a file, read-only",
        "exit 2 before training; what was there is as it was",
    ),
    9: (
        "SIGTERM, SIGINT",
        "the step is finished and saved, exit 143 or 130; resumed, the same end, bit for bit",
    ),
    10: ("A second signal, a step that hangs", "the process ends in time; the last checkpoint is valid"),
    11: ("SLURM takes the machine away and requeues the job", "the same folder; the same end, bit for bit"),
    12: (
        "The loss or a gradient is not finite",
        "no weight is touched; step and tasks are named, the last good checkpoint is kept",
    ),
    13: (
        "The loss is not finite on one rank",
        "all ranks stop at the same step, with the words of a single process",
    ),
    14: (
        "A rank dies, or raises",
        "the run ends within a minute and says why; resumed, the same end, bit for bit",
    ),
    15: ("Memory runs out", "the chunk is halved, the meta-batch stays the same; or one clear sentence"),
    16: (
        "A pickle in place of any file of a run",
        "exit 4 (2 where no checkpoint is read); its canary is not there",
    ),
    17: ("A `_target_` in a YAML, a run folder, a checkpoint", "exit 2; its canary is not there"),
    18: ("Archives that leave their folder, links, devices, bombs", "exit 3; nothing lies outside"),
    19: ("A wrong sha256, half a download", "exit 3; a part is continued and never used as it is"),
    20: (
        "Resuming with another configuration",
        "refused with a diff, no file changed; what may change is accepted",
    ),
    21: (
        "Another torch or machine than the run began with",
        "a warning that names what changed; the run goes on",
    ),
    22: (
        "Two processes, one run folder",
        "the second exits with 2 and the number of the first, which goes on undisturbed",
    ),
    23: ("Bad numbers, unknown keys", "exit 2 in seconds with every mistake in one list; no run folder"),
    24: ("Standard output is closed", "no traceback; training, files and exit code as without it"),
    25: (
        "A logger is down",
        "one warning, training goes on; the run's own files are those of a run without it",
    ),
    26: (
        "A job of a sweep fails, a sweep is killed",
        "the others finish; given again, it does what is missing, and every job equals the run alone",
    ),
}


def faults_of(name: str, marks: Iterable[int] = ()) -> set[int]:
    """The faults that a test injects: that of its name, test_fault_NN_…, and those of
    pytest.mark.fault(NUMBER, …).
    """
    match = re.match(r"test_fault_(\d\d)_", name)
    return {*([int(match[1])] if match else []), *marks}


def injecting(tests: Path) -> dict[int, set[str]]:
    """{fault: files} of the tests below a folder, found without importing any."""
    found: dict[int, set[str]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.name if isinstance(node, ast.FunctionDef) else ""
            for number in faults_of(name, _marks(node)):
                found.setdefault(number, set()).add(path.relative_to(tests.parent).as_posix())
    return found


def _marks(node: ast.AST) -> Iterator[int]:
    """Numbers in `pytest.mark.fault(…)`, wherever it stands."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fault":
        for part in (part for argument in node.args for part in ast.walk(argument)):
            if isinstance(part, ast.Constant) and isinstance(part.value, int):
                yield part.value


class Tally:
    """A pytest plugin that runs the tests which inject a fault and counts how often that happened and how
    often it was survived.
    """

    def __init__(self) -> None:
        self.faults: dict[str, set[int]] = {}  # by test
        self.injected: Counter[int] = Counter()
        self.survived: Counter[int] = Counter()
        self.files: dict[int, set[str]] = {number: set() for number in FAULTS}
        self.moments: dict[str, Counter[str]] = {}
        self.failed: list[str] = []
        self.skipped: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.faults[item.nodeid] = faults_of(
                item.name, (number for mark in item.iter_markers("fault") for number in mark.args)
            )
        items[:] = [item for item in items if self.faults[item.nodeid]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)
        elif report.when == "call" or report.failed:
            self._count(report)

    def _count(self, report: pytest.TestReport) -> None:
        for number in self.faults[report.nodeid]:
            self.injected[number] += report.when == "call"
            self.survived[number] += 1 if report.passed else -(report.when == "teardown")
            self.files[number].add(report.nodeid.partition("::")[0])
        if report.failed:
            self.failed.append(report.nodeid)
        for kind, phase in report.user_properties:
            if report.when == "call" and kind.startswith("killed "):
                self.moments.setdefault(kind.removeprefix("killed "), Counter())[str(phase)] += 1

    def complete(self) -> bool:
        """Every fault was injected, and every injection survived."""
        return not self.failed and all(self.injected[number] for number in FAULTS)


def fill(text: str, tally: Tally, machine: str) -> str:
    """The page with the part between its marks made anew. ValueError if it has no such part."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(
            f"the document has no pair of marks '{START}' … '{END}'; put them where the table belongs"
        )
    return f"{before}{START}\n{markdown(tally, machine)}\n{END}{after}"


def markdown(tally: Tally, machine: str) -> str:
    """machine: one sentence about where and when."""
    rows = [["#", "Fault", "Injected", "Survived", "Nothing lost: what was compared", "Tests"]]
    for number, (fault, compared) in FAULTS.items():
        files = ", ".join(f"`{name}`" for name in sorted(tally.files[number])) or "–"
        rows.append(
            [str(number), fault, str(tally.injected[number]), str(tally.survived[number]), compared, files]
        )
    phases = [["SIGKILL at random moments of", *PHASES, "in all"]]
    phases += [
        [kind, *(str(hit[phase]) for phase in PHASES), str(hit.total())]
        for kind, hit in tally.moments.items()
    ]
    lines = [machine, "", *table(rows), "", *table(phases)]
    for title, names in (("Not survived:", tally.failed), ("Left out on this machine:", tally.skipped)):
        if names:
            lines += ["", title, "", *(f"- `{name}`" for name in names)]
    return "\n".join(lines)


def table(rows: list[list[str]]) -> list[str]:
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return [head, f"|{' --- |' * len(rows[0])}", *rest]


def rows_of(page: str) -> Mapping[int, list[str]]:
    """{fault: cells} of the table on the page."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| ")
    ]
    return {int(row[0]): row[1:] for row in cells if row[0].isdecimal()}


def machine_of(facts: Mapping[str, Any], *, day: str, minutes: float, kills: str, seed: str) -> str:
    """facts: those of env.json."""
    versions, hardware = facts["versions"], facts["hardware"]
    command = f"scripts/fault_report --kills {kills} --seed {seed}"
    return (
        f"{day}, {hardware['cpu']}, {hardware['num_cpus']} cores, {hardware['system']}, Python "
        f"{versions['python']}, "
        f"torch {versions['torch']}; {minutes:.0f} minutes. The same moments again: `{command}`"
    )
