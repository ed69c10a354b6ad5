"""Reading what a run left behind, for tables and plots. Nothing here writes, and nothing needs torch."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metalearn import files
from metalearn.errors import ConfigError, DataError
from metalearn.rundir.checkpoint_files import located
from metalearn.rundir.choices import chosen
from metalearn.rundir.result_shape import is_number, problem_of

Line = dict[str, Any]  # one line of metrics.jsonl
TIMED = ("data", "step", "eval", "save")


def read_metrics(run_dir: Path, upto: int | None = None) -> list[Line]:
    """The lines of metrics.jsonl in order, of its first `upto` bytes; empty before the first one was written.

    DataError naming a line that is no measurement.
    """
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        text = files.read_text(path, None) if upto is None else files.read_bytes(path, None)[:upto].decode()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); restore it from a backup") from error
    complete = text.rpartition("\n")[0]  # a run that is still going may be inside a line
    return [
        measurement(text, path, number) for number, text in enumerate(complete.split("\n"), 1) if text.strip()
    ]


def measurement(text: str, path: Path, number: int) -> Line:
    """{"step", "split", and numbers or null under every other name}."""
    try:
        line = json.loads(text)
        good = isinstance(line["step"], int) and isinstance(line["split"], str)
        if good and all(is_number(value) for name, value in line.items() if name != "split"):
            return dict(line)
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise DataError(f"{path}, line {number} is no measurement; restore the file from a backup")


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, None when the file is absent."""
    if not path.exists():
        return None
    found: dict[str, Any] = files.read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}")
    return found


def read_results(path: Path) -> dict[str, Any] | None:
    """The content of a results.json, None when it is absent. DataError if it is not what a run writes."""
    try:
        results = read_json(path)
        if results is None:
            return None
        reason = problem_of(results)
        if not reason:
            return results
    except (OSError, ValueError) as error:
        reason = str(error)
    raise DataError(f"{path} is not the result of a run ({reason}); restore it from a backup")


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, None when the file is absent."""
    return files.read_yaml(path) if path.exists() else None


def names_of(run_dir: Path) -> dict[str, str | None]:
    """What a run's configuration was made of; empty where it has none that can be read."""
    try:
        config = read_yaml(run_dir / "config.yaml")
    except (OSError, ValueError):
        return {}
    return chosen(config) if isinstance(config, dict) else {}


def state(run_dir: Path) -> str:
    """How a run stands: not started, running, killed, preempted, failed or finished.

    running: a living process holds its lock. killed: its process is gone without a word. preempted: it was
    stopped and saved.
    """
    try:
        told = (read_json(run_dir / "status.json") or {}).get("status")
    except (OSError, ValueError, AttributeError):
        told = None
    if told == "finished":
        return "finished"
    if is_locked(run_dir / ".lock"):
        return "running"
    if told == "failed":
        return "failed"
    if not (run_dir / "config.yaml").exists():
        return "not started"
    return "preempted" if told == "preempted" else "killed"


def is_locked(path: Path) -> bool:
    """Whether a living process holds this lock; a folder whose lock cannot be asked is believed."""
    if not path.is_file():
        return False  # also a pipe, which would keep us waiting
    try:
        with path.open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def holder(run_dir: Path) -> str:
    """Process id of who holds the run's lock, or held it last."""
    try:
        text = files.read_text(run_dir / ".lock", 100).strip()
    except (OSError, ValueError):
        return "unknown"
    return text if text.isdecimal() else "unknown"


def last_words(run_dir: Path) -> str:
    """The last line of train.log without its time, which is the reason where a run has failed."""
    try:
        lines = files.read_bytes(run_dir / "train.log", None).decode("utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    words = re.sub(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d )?(failed: )?", "", last)
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def wall_seconds(lines: list[Line]) -> dict[str, float]:
    """Seconds spent on each of data, step, eval and save, summed over a run's lines and so over its
    restarts.
    """
    return {part: sum(float(line.get(f"time_{part}") or 0.0) for line in lines) for part in TIMED}


class Format(NamedTuple):
    """How people read a metric: the factor on what stands in files, digits behind the point, and the unit, if
    any.
    """

    scale: float = 1.0
    digits: int = 4
    unit: str = ""

    def shown(self, mean: float | None, ci95: float | None = None) -> str:
        """'96.31 ± 0.42 %'. mean: None stands for NaN or infinity, which JSON does not have."""
        if mean is None:
            return "not finite"
        unit = f" {self.unit}" if self.unit else ""
        text = f"{mean * self.scale:.{self.digits}f}"
        return f"{text}{unit}" if ci95 is None else f"{text} ± {ci95 * self.scale:.{self.digits}f}{unit}"


def format_of(metric: str, results: dict[str, Any] | None) -> Format:
    """What results.json says of a metric; only where it says nothing, as that of an older run, the name
    decides.
    """
    declared = ((results or {}).get("formats") or {}).get(metric)
    percent = metric.startswith("accuracy") if declared is None else declared["percent"]
    if percent:
        return Format(100.0, 2, "%")
    return Format(unit=declared["unit"]) if declared else Format()


def shown(metric: str, results: dict[str, Any]) -> str:
    """A metric of a result as people read it, with its interval."""
    value = results["metrics"][metric]
    return format_of(metric, results).shown(value["mean"], value["ci95"])


def adaptation_curve(results: dict[str, Any]) -> list[tuple[int, float, float]]:
    """(step, mean, ci95) of the primary metric after each reported number of adaptation steps, in order."""
    stem = f"{results['primary']}_step_"
    found = [
        (int(name.removeprefix(stem)), value)
        for name, value in results["metrics"].items()
        if name.startswith(stem) and name.removeprefix(stem).isdecimal()
    ]
    return [(step, value["mean"], value["ci95"]) for step, value in sorted(found, key=lambda pair: pair[0])]


def state_of(status: Path) -> str:
    """What status.json says, unless the process behind it is gone without a word: then nobody holds the run's
    lock.
    """
    try:
        state = str((read_json(status) or {})["status"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "unreadable"
    return "killed; resume it" if state == "running" and not is_locked(status.parent / ".lock") else state


def result_of(path: Path) -> tuple[str, str]:
    """Primary metric with interval, and the number of tasks; empty before the run has ended."""
    try:
        results = read_json(path)
        if results is None:
            return "", ""
        primary = results["primary"]
        return f"{primary} {shown(primary, results)}", str(results["episodes"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "unreadable", ""


def existing_run(folder: Path) -> Path:
    """The folder itself if it holds a run; ConfigError that says what it is instead."""
    if (folder / "config.yaml").is_file():
        return folder
    jobs = sorted(path.parent for path in folder.glob("*/config.yaml"))
    if jobs and (folder / "sweep.csv").is_file():
        left = [job for job in jobs if state_of(job / "status.json") != "finished"] or jobs
        raise ConfigError(
            f"{folder} is a sweep of several runs; name one of them: {', '.join(map(str, left))}"
        )
    if "=" in folder.name and not folder.exists():
        raise ConfigError(f"{folder} is no folder; the folder of a run comes first: RUN_DIR {folder}")
    run_dir, checkpoint = located(folder)
    if checkpoint is not None and (run_dir / "config.yaml").is_file():
        raise ConfigError(
            f"{folder} is a checkpoint, not a run; give its run: {run_dir}, and to evaluate this checkpoint "
            f"add eval.checkpoint={checkpoint}"
        )
    reason = (
        "does not exist"
        if not folder.exists()
        else "holds no config.yaml"
        if folder.is_dir()
        else "is not a folder"
    )
    raise ConfigError(f"{folder} is not a run: it {reason}; list the runs with: metalearn ls runs")


# What an empty run folder may hold: the words of a run that was asked for, whole or half written. Hidden
# files count nowhere.
ASKED_FOR = ("overrides.yaml", "overrides.yaml.tmp", "config.yaml.tmp", "status.json.tmp")


def refuse_existing_run(cfg: Mapping[str, Any]) -> None:
    """A run begins in a folder of its own: one that holds a run is continued, and other files are not mixed
    with it.
    """
    folder = cfg["run_dir"]
    if not folder or not Path(folder).is_dir():
        return
    try:
        names = sorted(
            path.name
            for path in Path(folder).iterdir()
            if not path.name.startswith(".") and path.name not in ASKED_FOR
        )
    except OSError as error:
        raise ConfigError(
            f"run_dir={folder} cannot be read: {error.strerror}; choose another run_dir"
        ) from error
    if "config.yaml" in names:
        raise ConfigError(
            f"run_dir={folder} already holds a run; continue it with: metalearn resume {folder}, or choose "
            "another run_dir"
        )
    if names:
        held = ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])])
        raise ConfigError(
            f"run_dir={folder} is not empty (it holds {held}); a run begins in a folder of its own, choose "
            "another run_dir"
        )
