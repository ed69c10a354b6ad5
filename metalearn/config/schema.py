"""Which keys there are, of what type their values are, and what these may be. Checked without torch.

The composed YAML is the schema: its keys, and the types of its defaults. What a default cannot tell is a
range (see `metalearn.config.ranges`): of the keys of algorithms, data and models it stands in their own YAML,
and of the keys that every run has in the table below.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from metalearn.config import ranges
from metalearn.config.compatibility import MOVED
from metalearn.config.ranges import Range

SEED = f"int >= 0 <= {2**63 - 1}"  # the tasks are hashed from int64
RANGES: dict[str, str] = {
    "seed": SEED,
    "run_dir": "path | null",
    "sweep": "text | null",
    "trusted": "[text]",
    "trainer.outer_steps": "int >= 0",
    "trainer.meta_batch_size": "int >= 1",
    "trainer.batch_size": "int >= 1",
    "trainer.log_every": "int >= 1",
    "trainer.eval_every": "int >= 1",
    "trainer.checkpoint_every": "int >= 1",
    "trainer.keep_last": "int >= 1",
    "trainer.keep_best": "int >= 1",
    "trainer.patience": "int >= 1 | null",
    "trainer.on_nan": "stop | skip | rollback",
    "trainer.shutdown_timeout_s": "int >= 1 <= 86400",  # a day
    "eval.episodes": "int >= 2",
    "eval.val_episodes": "int >= 2",
    "eval.split": "train | val | test",
    "eval.seed": SEED,
    "eval.monitor": "text | null",
    "eval.chunk": "int >= 1 | null",
    "eval.tasks": "path | null",
    "eval.seeds": "int >= 1 <= 1000",
    "eval.ci_target": "float > 0 | null",
    "eval.grid": "map | null",
    "device.plan": "auto | loop | vmap",
    "device.chunk": "int >= 0",
    "device.threads": "int >= 1 | null",
    "device.compile": "auto | bool | null",
    "device.ranks": "int >= 1 | auto",
    "device.precision": "float32 | float64 | bfloat16",
    "optimizer.lr": "float > 0",
    "optimizer.weight_decay": "float >= 0",
    "optimizer.schedule.name": "constant | cosine | linear | step",
    "optimizer.schedule.final": "float >= 0",
    "optimizer.schedule.gamma": "float > 0",
    "optimizer.schedule.every": "int >= 1",
    "optimizer.clip.norm": "float > 0 | null",
    "optimizer.clip.value": "float > 0 | null",
}

# What others call our words; difflib would not find them.
SYNONYMS: dict[str, str] = {
    "fast_lr": "inner_lr",
    "meta_lr": "optimizer.lr",
    "outer_lr": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "ways": "way",
    "n_way": "way",
    "num_ways": "way",
    "shots": "shot",
    "n_shot": "shot",
    "k_shot": "shot",
    "num_shots": "shot",
    "queries": "query_shot",
    "n_query": "query_shot",
    "epochs": "trainer.outer_steps",
    "steps": "outer_steps",
    "iterations": "trainer.outer_steps",
    "inner_steps": "adaptation_steps",
    "num_steps": "adaptation_steps",
    "task_num": "meta_batch_size",
    "test_adaptation_steps": "eval_adaptation_steps",
    "evaluate": "eval",
    "list": "ls",
    "continue": "resume",
}
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "several keys",
}


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant. Dotted names are also compared by their last part."""
    known = list(names)
    head, _, last = word.rpartition(".")
    meant = SYNONYMS.get(last.lower())
    if meant is not None:
        same_group = [n for n in known if n == f"{head}.{meant}" or n == meant]
        elsewhere = sorted((n for n in known if n.endswith(f".{meant}")), key=len)
        if same_group or elsewhere:
            return (same_group or elsewhere)[0]
    siblings = [n for n in known if head and n.rpartition(".")[0] == head]
    for candidates in (siblings, known):
        found = difflib.get_close_matches(word, candidates, n=1, cutoff=0.7)
        if found:
            return found[0]
    endings = {n.rpartition(".")[2]: n for n in sorted(known, key=len, reverse=True)}
    found = difflib.get_close_matches(last, endings, n=1, cutoff=0.75)
    return endings[found[0]] if found else None


def hint(word: str, names: Iterable[str]) -> str:
    """`; did you mean NAME?`, or nothing."""
    found = closest(word, names)
    return f"; did you mean {found}?" if found else ""


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is not itself a mapping; `about:` blocks are prose and are left
    out.
    """
    for key, value in tree.items():
        if key == "about":
            continue
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def lookup(tree: Any, key: str) -> tuple[bool, Any]:
    """Whether the dotted key exists, and its value."""
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return False, None
        tree = tree[part]
    return True, tree


@functools.cache
def common_ranges() -> dict[str, Range]:
    """Of the keys that every run has."""
    return {key: ranges.parse(text) for key, text in RANGES.items()}


def ranges_of(tree: Mapping[str, Any]) -> dict[str, Range]:
    """By dotted key: those that every run has, and those that stand in the tree's `about:` blocks."""
    return {**common_ranges(), **ranges.of_plugins(tree)}


def check_types(
    schema: dict[str, Any],
    tree: dict[str, Any],
    prefix: str = "",
    allowed: Mapping[str, Range] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The tree with whole numbers made float where the schema says float, and a sentence per key that does
    not fit.

    allowed: the ranges by dotted name; those of the schema where it is a whole configuration.
    """
    allowed = ranges_of(schema) if allowed is None else allowed
    fitted, problems = {}, []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key == "about":
            fitted[key] = value
        elif key not in schema:
            problems.append(f"{name} is not a key{hint(name, known_keys(schema, prefix))}")
        elif isinstance(schema[key], dict) and isinstance(value, dict):
            fitted[key], found = check_types(schema[key], value, f"{name}.", allowed)
            problems += found
        else:
            fitted[key], problem = fit(name, schema[key], value, allowed.get(name))
            problems += problem
    return fitted, problems


def known_keys(schema: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all leaves of a schema, but for those that have another name now."""
    return [name for key, _ in leaves(schema) if (name := prefix + key) not in MOVED]


def fit(name: str, default: Any, value: Any, allowed: Range | None = None) -> tuple[Any, list[str]]:
    """The value as its type, and what is wrong with it. allowed: what the key may be, if a range says so."""
    if value is None and (default is None or (allowed is not None and allowed.has("null"))):
        return None, []
    if allowed is not None and allowed.types:
        types = allowed.types
    elif default is None:
        return value, []
    else:
        types = (type(default),)
    if isinstance(default, dict):
        keys = [f"{name}.{key}" for key in default if f"{name}.{key}" not in MOVED]
        some = ", ".join(keys[:4])
        return value, [f"{name}={show(value)}: {name} holds several keys; set one of them: {some}"]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and float in types and int not in types:
        try:
            value = float(value)
        except OverflowError:
            return value, [
                f"{name} is a number of {len(str(abs(value)))} digits; at most 308 can be computed with"
            ]
    if (
        str in types
        and type(value) not in types
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    ):
        return str(value), []
    if type(value) not in types:
        expected = " or ".join(WORDS[kind] for kind in types)
        return value, [f"{name}={show(value)} is not {expected} (default: {show(default)})"]
    if isinstance(value, float) and not math.isfinite(value):
        return value, [f"{name}={value} is not a finite number (default: {show(default)})"]
    if isinstance(value, list):
        return fit_elements(
            name, default if isinstance(default, list) else [], value, allowed.elements if allowed else None
        )
    return value, []


def fit_elements(
    name: str, default: list[Any], value: list[Any], allowed: Range | None
) -> tuple[Any, list[str]]:
    """Every element of a list must be of the type that its range says, or else of the default's first
    element; one that the default holds is right as it is.

    A mapping may have the keys that any mapping of the default has, and not all of them.
    """
    first = default[0] if default else None
    if first is None and allowed is None:
        return value, []
    if isinstance(first, Mapping):
        keys: dict[str, Any] = {}
        for element in default:
            keys = {**element, **keys} if isinstance(element, Mapping) else keys
        results = [
            (element, []) if element in default else fit_mapping(f"{name}[{i}]", keys, element)
            for i, element in enumerate(value)
        ]
    else:
        results = [
            (element, [] if None in default else null_problems(f"{name}[{i}]", allowed))
            if element is None and allowed is not None
            else fit(f"{name}[{i}]", first, element, allowed)
            for i, element in enumerate(value)
        ]
    return [element for element, _ in results], [problem for _, found in results for problem in found]


def null_problems(name: str, allowed: Range) -> list[str]:
    """What a range says against null as an element of a list."""
    if allowed.has("null"):
        return []
    types = " or ".join(WORDS[kind] for kind in allowed.types)
    expected = f"none of {', '.join(allowed.few)}" if allowed.few else f"not {types}"
    return [f"{name}=null is {expected}; leave it out"]


def fit_mapping(name: str, schema: dict[str, Any], element: Any) -> tuple[Any, list[str]]:
    if not isinstance(element, dict):
        return element, [
            f"{name}={show(element)} is not several keys, such as "
            f"{{{', '.join(f'{key}: …' for key in list(schema)[:4])}}}"
        ]
    return check_types(schema, element, f"{name}.", {})


def show(value: Any) -> str:
    """A value as it is typed on a command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def value_problems(cfg: Mapping[str, Any]) -> list[str]:
    """Values out of range, unknown words, and keys that contradict each other. Wrong types are not judged
    here.
    """
    allowed = ranges_of(cfg)
    problems = [
        problem
        for name, value in leaves(cfg)
        if name in allowed
        for problem in range_problems(name, value, allowed[name])
    ]
    return problems + rules(cfg)


def range_problems(name: str, value: Any, allowed: Range, of: str = "") -> list[str]:
    """What a range says against a value. of: the list whose element it is."""
    if isinstance(value, list) and allowed.elements is not None:
        return [
            problem
            for i, element in enumerate(value)
            for problem in range_problems(f"{name}[{i}]", element, allowed.elements, of=name)
        ]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    numeric = [one for one in allowed.alternatives if one.kind in ("int", "float")]
    if value is None or isinstance(value, (list, Mapping)) or show(value) in allowed.few:
        return []
    if number and value in allowed.numbers:
        return []
    if isinstance(value, float) and not math.isfinite(value):
        return []  # a matter of its type
    if number and numeric:
        broken = [
            one.broken(value)
            if one.kind == "float" or isinstance(value, int) or float not in allowed.types
            else " and ".join(filter(None, [one.broken(value), "whole"]))
            for one in numeric
        ]
        if None in broken:
            return []
        words = [one.word for one in allowed.alternatives if one.number is not None]
        return [f"{name}={value} must be {broken[0]}{', or be '.join(['', *words])}"]
    if not allowed.few or (isinstance(value, str) and allowed.has("text", "path")):
        return []
    close = hint(show(value), allowed.few)
    if numeric:
        return [
            f"{name}={show(value)} is neither {WORDS[ranges.KINDS[numeric[0].kind]]} nor "
            f"{' or '.join(allowed.few)}{close}"
        ]
    said = f"{of} names {show(value)}, which" if of else f"{name}={show(value)}"
    return [f"{said} is none of {', '.join(allowed.few)}{close}"]


def rules(cfg: Mapping[str, Any]) -> list[str]:
    """Rules between keys that every run has, and what no range can say of one of them."""
    get = dict(leaves(cfg)).get
    problems = []
    problems += rank_problems(get("device.ranks"), get("trainer.meta_batch_size"))
    if get("optimizer.clip.norm") is not None and get("optimizer.clip.value") is not None:
        problems.append("optimizer.clip.norm and optimizer.clip.value are both set; set one of them to null")
    gamma = get("optimizer.schedule.gamma")
    if isinstance(gamma, float) and gamma > 1:
        problems.append(
            f"optimizer.schedule.gamma={gamma} would raise the learning rate; it must be at most 1"
        )
    checkpoint = get("eval.checkpoint")
    if (
        isinstance(checkpoint, str)
        and checkpoint not in ("best", "last")
        and not checkpoint.removeprefix("step-").isdecimal()
    ):
        problems.append(
            f"eval.checkpoint={checkpoint} is none of best, last, "
            f"step-NUMBER{hint(checkpoint, ['best', 'last'])}"
        )
    return problems


def rank_problems(ranks: Any, tasks: Any) -> list[str]:
    if type(ranks) is int and type(tasks) is int and 1 <= tasks < ranks:
        return [
            f"device.ranks={ranks} but trainer.meta_batch_size={tasks}: a rank without a task has nothing to "
            f"do; use device.ranks={tasks}"
        ]
    return []


def unkept_problems(cfg: Mapping[str, Any]) -> list[str]:
    """A checkpoint for the final evaluation of training that may be gone by then."""
    checkpoint = dict(leaves(cfg)).get("eval.checkpoint")
    if not isinstance(checkpoint, str) or not checkpoint.removeprefix("step-").isdecimal():
        return []
    return [
        f"eval.checkpoint={checkpoint}: training keeps its best and its newest checkpoints only, and judges "
        "one of them; "
        "choose best or last, and judge another one that was kept with: metalearn eval RUN_DIR "
        f"eval.checkpoint={checkpoint}"
    ]
