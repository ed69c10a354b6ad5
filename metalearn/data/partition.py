"""How classes are divided into splits: at random by a seed of its own, or as a file says."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metalearn.core import SPLITS, Split
from metalearn.errors import ConfigError
from metalearn.files import MAX_JSON, read_json, read_text, read_yaml
from metalearn.hashing import choose

PARTITION_DRAW = -4
EXPECTED = (
    "expected a mapping of train, val and test to lists of classes, or of classes to splits (CSV: "
    "columns class,split)"
)


def split_sizes(num_classes: int, fractions: Sequence[float]) -> dict[Split, int]:
    """Classes per split, rounded; train takes what the rounding leaves."""
    val, test = (round(num_classes * fraction) for fraction in fractions[1:])
    return {"train": num_classes - val - test, "val": val, "test": test}


def random_partition(num_classes: int, sizes: Mapping[Split, int], seed: int) -> dict[Split, list[int]]:
    """Disjoint class numbers of each split, sorted; a pure function of the seed."""
    order = choose(torch.tensor(PARTITION_DRAW), seed, count=num_classes, size=num_classes).tolist()
    partition: dict[Split, list[int]] = {}
    for split in SPLITS:
        partition[split], order = sorted(order[: sizes[split]]), order[sizes[split] :]
    return partition


def file_partition(path: Path, names: Sequence[str]) -> dict[Split, list[int]]:
    """Class numbers of each split, as a JSON, YAML or CSV file says. Classes that it does not name are left
    out.

    Raises ConfigError with every name that is unknown, named twice, or given to something that is no split.
    """
    pairs = _pairs(path)
    number_of = {name: number for number, name in enumerate(names)}
    problems, partition = [], {split: [] for split in SPLITS}  # type: tuple[list[str], dict[Split, list[int]]]
    seen: set[str] = set()
    for name, split in pairs:
        if split not in SPLITS:
            problems.append(f"{path}: class {name!r} has split {split!r}; expected train, val or test")
        elif name not in number_of:
            close = difflib.get_close_matches(name, names, n=1)
            problems.append(
                f"{path}: class {name!r} is not in the data"
                + (f"; did you mean {close[0]!r}?" if close else "")
            )
        elif name in seen:
            problems.append(f"{path}: class {name!r} is named twice; splits never share a class")
        else:
            seen.add(name)
            partition[split].append(number_of[name])
    if problems:
        raise ConfigError(problems[:20])
    return {split: sorted(numbers) for split, numbers in partition.items()}


def _pairs(path: Path) -> list[tuple[str, Any]]:
    """(class, split) pairs of the file."""
    try:
        if path.suffix == ".csv":
            return [
                (row["class"], row["split"]) for row in csv.DictReader(read_text(path, MAX_JSON).splitlines())
            ]
        content = read_json(path) if path.suffix == ".json" else read_yaml(path)
    except OSError as error:
        raise ConfigError(
            f"data.partition={path} cannot be read ({error.strerror}); expected random or a .json, .yaml or "
            ".csv file"
        ) from error
    except (ValueError, KeyError, csv.Error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"data.partition={path} is not valid ({reason}); {EXPECTED}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"data.partition={path} holds a {type(content).__name__}; {EXPECTED}")
    if all(isinstance(value, list) for value in content.values()):
        return [(str(name), split) for split, classes in content.items() for name in classes]
    return [(str(name), split) for name, split in content.items()]
