"""Which results are of one method: those that differ by nothing but the seed; whether seeds matter to it; and
what methods are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from metalearn.errors import ConfigError, DataError
from metalearn.rundir import registry
from metalearn.rundir.choices import GROUPS, chosen
from metalearn.rundir.reader import read_json, read_yaml
from metalearn.rundir.registry import Judgement, canonical

# Keys of config.yaml from which no number follows but by rounding, or that say which tasks were judged; what
# the protocol says of those is compared instead.
FREE = (
    *("seed", "run_dir", "sweep", "trusted", "choices", "logger", "device", "hydra", "data.root"),
    *("data.cache_dir", "trainer.log_every", "trainer.checkpoint_every", "trainer.keep_last"),
    *("trainer.keep_best", "trainer.shutdown_timeout_s", "trainer.dry_run", "eval"),
)
# … but for these
BOUND = ("device.precision", "eval.val_episodes", "eval.seed", "eval.monitor")
TASK_FACTS = registry.TASK_FACTS
NAMING = tuple(group for group in GROUPS if group not in ("device", "logger", "experiment"))
MOST_LETTERS = 48  # of a label
NONE = "–"


class Method(NamedTuple):
    """results: one for each seed, in their order. label: short, and no other method's."""

    label: str
    results: list[Judgement]

    @property
    def seeds(self) -> list[int]:
        return [result.results["seed"] for result in self.results]


class Facts(NamedTuple):
    """What a result's method is. choices: names, from which nothing follows, by group. science: the rest."""

    choices: dict[str, str | None]
    science: dict[str, Any]


def methods_of(judged: Sequence[Judgement]) -> tuple[list[Method], dict[str, list[str]]]:
    """The methods in the order of their first results, and in which keys they differ: the value of each.

    ConfigError where one method was judged twice with the same seed; DataError for a damaged config.yaml.
    """
    found: dict[str, tuple[Facts, list[Judgement]]] = {}
    for result in judged:
        facts = facts_of(result)
        key = canonical(facts.science)
        found.setdefault(key, (facts, []))[1].append(result)
    groups = [sorted(results, key=lambda result: result.results["seed"]) for _, results in found.values()]
    for results in groups:
        refuse_twice(results)
    differ = differing([facts for facts, _ in found.values()])
    names = labels(differ, groups)
    return [Method(name, results) for name, results in zip(names, groups, strict=True)], differ


def refuse_twice(results: Sequence[Judgement]) -> None:
    """results: of one method, sorted by seed."""
    for one, other in zip(results, results[1:], strict=False):
        if one.results["seed"] == other.results["seed"]:
            raise ConfigError(
                f"{one.folder} and {other.folder} are one method with seed={one.results['seed']}; a model "
                "counts once: name one of them"
            )


def facts_of(judged: Judgement) -> Facts:
    path = judged.run_dir / "config.yaml"
    try:
        cfg, env = read_yaml(path), read_json(judged.run_dir / "env.json") or {}
    except (OSError, ValueError) as error:
        raise DataError(f"{judged.run_dir} cannot be read ({error}); restore it from a backup") from error
    if not isinstance(cfg, dict):
        raise DataError(f"{path} is not the configuration of a run; restore it from a backup")
    return facts_from(cfg, env, judged.results)


def facts_from(cfg: Mapping[str, Any], env: Mapping[str, Any], results: Mapping[str, Any]) -> Facts:
    """Of config.yaml, env.json and results.json."""
    places = env.get("locations")
    moved = {*places} if isinstance(places, dict) else set()
    science = {key: value for key, value in leaves(cfg) if key not in moved and not is_free(key)}
    science["data_sha256"] = env.get("data_sha256")  # of what it was trained on, wherever that lies
    protocol = results["protocol"]
    science |= {f"protocol.{name}": value for name, value in protocol.items() if name not in TASK_FACTS}
    return Facts(chosen(cfg), science)


def is_free(key: str) -> bool:
    return key not in BOUND and any(key == free or key.startswith(f"{free}.") for free in FREE)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a configuration, without what its YAMLs say about themselves."""
    for key, value in tree.items():
        if key == "about":
            continue
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def trains(method: Method, scores: Sequence[Mapping[Any, float]]) -> bool:
    """Whether another seed could have scored otherwise: not where nothing was trained, and all seeds score
    alike on every task that they were judged on, whichever of those are compared. scores: by task, of each.
    """
    if any(was_trained(result) for result in method.results):
        return True
    first = scores[0]
    return any(first.get(task, value) != value for one in scores[1:] for task, value in one.items())


def was_trained(judged: Judgement) -> bool:
    """As results.json says; that of an older run does not, and then the newest weights of a run that was to
    take steps say so, if they are those of step 0.
    """
    if "trains_on" in judged.results:
        return judged.results["trains_on"] is not None
    asked = dict(leaves(read_yaml(judged.run_dir / "config.yaml"))).get("trainer.outer_steps")
    newest = judged.results["protocol"].get("checkpoint") in ("best", "last")
    return not (judged.results["step"] == 0 and newest and asked)


def same_runs(a: Method, b: Method) -> bool:
    """Whether each model of one is also the model, of that seed, of the other."""
    first, second = ([result.run_dir.resolve() for result in method.results] for method in (a, b))
    return first == second


def differing(methods: Sequence[Facts]) -> dict[str, list[str]]:
    """The keys in which methods differ, those that say most first, with the value of each as it is typed.

    Where the choice of a group differs, its keys go without saying, and so does what a protocol repeats.
    """
    found: dict[str, list[str]] = {}
    for group in NAMING:
        names = [str(facts.choices[group] or NONE) for facts in methods]
        if len({*names}) > 1:
            found[group] = names
    implied = tuple(f"{group.replace('/', '.')}." for group in found)
    keys = dict.fromkeys(key for facts in methods for key in facts.science)
    rank = {group: number for number, group in enumerate(("algo", "model", "data", "optimizer", "trainer"))}
    last = {"protocol": 8, "data_sha256": 9}
    for key in sorted(keys, key=lambda key: {**rank, **last}.get(key.partition(".")[0], 7)):
        values = [shown(facts.science.get(key, NONE)) for facts in methods]
        if len({*values}) > 1 and not key.startswith(implied) and not _repeats(key, values, found):
            found[key.removeprefix("protocol.")] = values
    return found


def _repeats(key: str, values: Sequence[str], found: Mapping[str, Any]) -> bool:
    """Whether a fact of a protocol follows from the differences that were found before it."""
    if not key.startswith("protocol."):
        return False
    if "algo" in found and NONE in values:  # a dial that only one of the two has
        return True
    said = {name.rpartition(".")[2] for name in found}
    return key.removeprefix("protocol.").removeprefix("train_") in said


def shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return canonical(value).replace('"', "").replace(" ", "")


def labels(differ: Mapping[str, Sequence[str]], groups: Sequence[Sequence[Judgement]]) -> list[str]:
    """As few differences as tell all methods apart, or else the names of their folders."""
    told = [""] * len(groups)
    for key, values in differ.items():
        longer = [f"{text} {key}={value}".strip() for text, value in zip(told, values, strict=True)]
        if len({*longer}) > len({*told}):
            told = longer
        if len({*told}) == len(groups):
            break
    if len({*told}) == len(groups) and max(map(len, told)) <= MOST_LETTERS:
        return told
    folders = [results[0].folder for results in groups]
    names = [
        folder.name if folder.parent.name != "evals" else f"{folder.parent.parent.name}/{folder.name}"
        for folder in folders
    ]
    return names if len({*names}) == len(names) else [str(folder) for folder in folders]
