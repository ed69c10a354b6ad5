"""Which keys there are, of what type their values are, and what these may be. Checked without torch.

The composed YAML is the schema. The tables below hold only what a default cannot tell: the type of a key
whose default is null, the range of a shared key, and the words that a key chooses from.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Types of the keys whose default is null; null stays allowed.
TYPES: dict[str, tuple[type, ...]] = {
    "run_dir": (str,),
    "sweep": (str,),
    "trainer.patience": (int,),
    "eval.monitor": (str,),
    "eval.chunk": (int,),
    "device.threads": (int,),
    "device.compile": (bool, str),
    "optimizer.clip.norm": (float,),
    "optimizer.clip.value": (float,),
    "data.root": (str,),
    "data.cache_dir": (str,),
    "data.train.way": (int,),
    "data.train.shot": (int,),
    "data.train.query_shot": (int,),
}
MIXED: dict[str, tuple[type, ...]] = {
    "algo.adapts": (str, list),
    "device.ranks": (int, str),
}  # keys that take more than their default's type

# What our words were called before. Saved runs may use them; on a command line the new word is named.
RENAMED: dict[str, str] = {"eval.batch_size": "eval.chunk"}

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
    if word in RENAMED:
        return f"; it is now {RENAMED[word]}"
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


def check_types(
    schema: dict[str, Any], tree: dict[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The tree with whole numbers made float where the schema says float, and a sentence per key that does
    not fit.
    """
    fitted, problems = {}, []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key == "about":
            fitted[key] = value
        elif key not in schema:
            problems.append(f"{name} is not a key{hint(name, known_keys(schema, prefix))}")
        elif isinstance(schema[key], dict) and isinstance(value, dict):
            fitted[key], found = check_types(schema[key], value, f"{name}.")
            problems += found
        else:
            fitted[key], problem = fit(name, schema[key], value)
            problems += problem
    return fitted, problems


def known_keys(schema: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all leaves of a schema."""
    return [prefix + name for name, _ in leaves(schema)]


def fit(name: str, default: Any, value: Any) -> tuple[Any, list[str]]:
    """The value as its type, and what is wrong with it."""
    if value is None and (default is None or name in TYPES):
        return None, []
    allowed = TYPES.get(name) or MIXED.get(name) or (None if default is None else (type(default),))
    if allowed is None:
        return value, []
    if isinstance(default, dict):
        some = ", ".join(f"{name}.{key}" for key in list(default)[:4])
        return value, [f"{name}={show(value)}: {name} holds several keys; set one of them: {some}"]
    if (
        str in allowed
        and type(value) not in allowed
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    ):
        return str(value), []
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in allowed:
        expected = " or ".join(WORDS[kind] for kind in allowed)
        return value, [f"{name}={show(value)} is not {expected} (default: {show(default)})"]
    if isinstance(value, float) and not math.isfinite(value):
        return value, [f"{name}={value} is not a finite number (default: {show(default)})"]
    if isinstance(value, list) and isinstance(default, list) and default:
        return fit_elements(name, default, value)
    return value, []


def fit_elements(name: str, default: list[Any], value: list[Any]) -> tuple[Any, list[str]]:
    """Every element of a list must be of the type of the default's first element; one that the default holds
    is right as it is.

    A mapping may have the keys that any mapping of the default has, and not all of them.
    """
    if isinstance(default[0], Mapping):
        keys: dict[str, Any] = {}
        for element in default:
            keys = {**element, **keys} if isinstance(element, Mapping) else keys
        results = [
            (element, []) if element in default else fit_mapping(f"{name}[{i}]", keys, element)
            for i, element in enumerate(value)
        ]
    else:
        results = [fit(f"{name}[{i}]", default[0], element) for i, element in enumerate(value)]
    return [element for element, _ in results], [problem for _, found in results for problem in found]


def fit_mapping(name: str, schema: dict[str, Any], element: Any) -> tuple[Any, list[str]]:
    if not isinstance(element, dict):
        return element, [
            f"{name}={show(element)} is not several keys, such as "
            f"{{{', '.join(f'{key}: …' for key in list(schema)[:4])}}}"
        ]
    return check_types(schema, element, f"{name}.")


def show(value: Any) -> str:
    """A value as it is typed on a command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


# Lowest value that is allowed; exclusive where the table says so.
AT_LEAST: dict[str, int] = {
    "seed": 0,
    "trainer.outer_steps": 0,
    "trainer.meta_batch_size": 1,
    "trainer.batch_size": 1,
    "trainer.log_every": 1,
    "trainer.eval_every": 1,
    "trainer.checkpoint_every": 1,
    "trainer.keep_last": 1,
    "trainer.keep_best": 1,
    "trainer.patience": 1,
    "trainer.shutdown_timeout_s": 1,
    "eval.episodes": 2,
    "eval.val_episodes": 2,
    "eval.seed": 0,
    "eval.chunk": 1,
    "data.way": 2,
    "data.shot": 1,
    "data.query_shot": 1,
    "data.train.way": 2,
    "data.train.shot": 1,
    "data.train.query_shot": 1,
    "data.seed": 0,
    "data.partition_seed": 0,
    "data.image_size": 1,
    "data.min_images": 0,
    "data.num_classes": 1,
    "data.num_drawings": 1,
    "data.num_items": 1,
    "data.num_users": 1,
    "data.min_ratings": 1,
    "data.max_ratings": 1,
    "data.channels": 1,
    "model.channels": 1,
    "model.embedding_dim": 1,
    "algo.adaptation_steps": 0,
    "algo.eval_adaptation_steps": 0,
    "algo.inner_batch_size": 1,
    "algo.eval_inner_batch_size": 1,
    "optimizer.weight_decay": 0,
    "optimizer.schedule.final": 0,
    "optimizer.schedule.every": 1,
    "device.chunk": 0,
    "device.threads": 1,
    "device.ranks": 1,
}
LARGEST_SEED = 2**63 - 1  # the tasks are hashed from int64
AT_MOST = {
    **dict.fromkeys(("seed", "eval.seed", "data.seed", "data.partition_seed"), LARGEST_SEED),
    "trainer.shutdown_timeout_s": 86_400,  # a day
}
ABOVE_ZERO = {
    "algo.inner_lr",
    "optimizer.lr",
    "optimizer.schedule.gamma",
    "optimizer.clip.norm",
    "optimizer.clip.value",
}

CHOICES: dict[str, tuple[str, ...]] = {
    "trainer.on_nan": ("stop", "skip", "rollback"),
    "eval.split": ("train", "val", "test"),
    "optimizer.schedule.name": ("constant", "cosine", "linear", "step"),
    "device.plan": ("auto", "loop", "vmap"),
    "device.compile": ("auto", "true", "false"),
    "device.precision": ("float32", "float64", "bfloat16"),
}
SPLITS = ("train", "val", "test")


def value_problems(cfg: Mapping[str, Any]) -> list[str]:
    """Values out of range, unknown words, and keys that contradict each other. Wrong types are not judged
    here.
    """
    problems = []
    for name, value in leaves(cfg):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and value < AT_LEAST.get(name, value):
            problems.append(f"{name}={value} must be at least {AT_LEAST[name]}")
        if number and value > AT_MOST.get(name, value):
            problems.append(f"{name}={value} must be at most {AT_MOST[name]}")
        if number and name in ABOVE_ZERO and value <= 0:
            problems.append(f"{name}={value} must be greater than 0")
        if isinstance(value, str) and value not in CHOICES.get(name, (value,)):
            problems.append(
                f"{name}={value} is none of {', '.join(CHOICES[name])}{hint(value, CHOICES[name])}"
            )
    return problems + rules(cfg)


def rules(cfg: Mapping[str, Any]) -> list[str]:
    """Rules between keys, and dials whose other settings do not exist yet."""
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
    rotations = get("data.rotations")
    for split in rotations if isinstance(rotations, list) else []:
        if split not in SPLITS:
            problems.append(
                f"data.rotations names {show(split)}, which is none of train, val, "
                f"test{hint(str(split), SPLITS)}"
            )
    return problems


def rank_problems(ranks: Any, tasks: Any) -> list[str]:
    if isinstance(ranks, str) and ranks != "auto":
        return [f"device.ranks={ranks} is neither a whole number nor auto{hint(ranks, ['auto'])}"]
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
