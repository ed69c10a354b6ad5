"""From words on a command line to one checked dictionary: Hydra composes, and every mistake is reported at
once.

Nothing here imports torch, so that a mistake is answered at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metalearn.config import compatibility, plugins, schema
from metalearn.config.about import about_problems
from metalearn.config.loader import Library, plain, plugin_problems
from metalearn.config.overrides import CHOSEN_ANEW, fixed, fixed_group, known_values, read_overrides, written
from metalearn.config.safety import hydra_problems, target_problems
from metalearn.config.saved import primary_values
from metalearn.errors import ConfigError, raise_if
from metalearn.rundir import choices
from metalearn.rundir.choices import GROUPS

SIZES = (
    "way",
    "shot",
    "query_shot",
    "image_size",
    "channels",
)  # keys that other `data` takes over from the run that is judged


def compose(overrides: list[str], config_dir: str | None = None) -> dict[str, Any]:
    """The resolved configuration as plain dictionaries. Raises ConfigError with every problem that was
    found.
    """
    library = Library(config_dir)
    request = read_overrides(overrides, library)
    problems = list(request.problems)
    base = library.load(request.choices)
    if base["trusted"]:
        problems.append(f"trusted={base['trusted']} stands in a YAML; it counts only from the command line")
    allowed = (
        library.load(chosen_without_experiment(base))
        if base["hydra"]["runtime"]["choices"].get("experiment")
        else base
    )
    names = base["hydra"]["runtime"]["choices"]
    values, found = known_values(request.values, allowed, library)
    composed = library.load([*request.choices, *values]) if values else dict(base)
    hydra = composed.pop("hydra")
    found += absent_problems(composed, library, names) + renamed_schedule(composed, library, names)
    found += plugins.file_problems(composed, library, names)
    allowed, composed = (plugins.with_ranges(tree, library, names) for tree in (allowed, composed))
    cfg, wrong = schema.check_types(
        {key: value for key, value in allowed.items() if key != "hydra"}, composed
    )
    wrong = [blame_experiment(problem, names) for problem in wrong]
    problems += (
        found
        + wrong
        + (hydra_problems(hydra) or plugin_problems(hydra))
        + schema.value_problems(cfg)
        + schema.unkept_problems(cfg)
    )
    problems += sweep_problems(base["sweep"], cfg.pop("sweep", None))
    trusted = cfg["trusted"] if isinstance(cfg.get("trusted"), list) and not wrong else []
    problems += target_problems(cfg, trusted) + about_problems(cfg)
    problems += [] if "hydra" in trusted else library.foreign_settings(hydra, [*request.choices, *values])
    problems += grid_problems(cfg)
    raise_if(problems)
    return {choices.KEY: {group: names.get(group) for group in GROUPS}, **with_absolute(cfg)}


def absent_problems(composed: Mapping[str, Any], library: Library, names: Mapping[str, Any]) -> list[str]:
    """What a run reads and nothing gives: groups without a choice, and choices that lie elsewhere or lack
    keys.
    """
    recipe = names.get("experiment")
    who = f"experiment={recipe}" if recipe else "a YAML"
    problems = []
    for group in GROUPS:
        name = names.get(group)
        if group == "experiment":
            continue
        if not name:
            problems.append(
                f"{who} chooses no {group}, and a run needs one; choices: {', '.join(library.options(group))}"
            )
        elif not schema.lookup(composed, group.replace("/", "."))[0]:
            problems.append(f"{group}={name} puts no keys into {group}; take `# @package` out of its YAML")
        elif not plugins.is_ours(group, name, library):  # ours are tested
            place = f"{group.replace('/', '.')}."
            read = [key for key in primary_values() if key.startswith(place) and not key.endswith("_target_")]
            lacks = [key.removeprefix(place) for key in read if not schema.lookup(composed, key)[0]]
            lacks = [key for key in lacks if "." not in key]  # of a group within, which answers itself
            if lacks:
                problems.append(
                    f"{group}={name} lacks {', '.join(lacks)}, which a run reads; begin its YAML with "
                    "`defaults: [_base, _self_]`"
                )
    return problems


def renamed_schedule(composed: Mapping[str, Any], library: Library, names: Mapping[str, Any]) -> list[str]:
    """A recipe that sets the name of the schedule, as recipes once did: the run would be known by another
    name than that of what it does.
    """
    key, group = "optimizer.schedule.name", "optimizer/schedule"
    exists, name = schema.lookup(composed, key)
    chosen = names.get(group)
    if not exists or not chosen or name == library.read(group, chosen).get("name"):
        return []
    recipe = names.get("experiment")
    who = f"experiment={recipe}" if recipe else "a YAML"
    return [f"{who} sets {key}, which is now {group}; write override /{group}: {schema.show(name)}"]


def sweep_problems(in_yaml: Any, given: Any) -> list[str]:
    """A run is of no sweep: the sweep's name is taken off the words of its jobs, and stands nowhere else."""
    if in_yaml is not None:
        return [f"sweep={schema.show(in_yaml)} stands in a YAML; it counts only from the command line"]
    return (
        []
        if given is None
        else [f"sweep={schema.show(given)} names a sweep of several runs; add -m to start one"]
    )


def reopen(
    saved: dict[str, Any],
    overrides: list[str],
    config_dir: str | None = None,
    *,
    sizes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The configuration of a run folder with values changed from the command line, under the same checks.

    The saved configuration is its own schema. Of the groups only `device` and `logger` may be chosen anew.
    `trusted` is never
    taken from the folder: a run with classes of one's own needs the word again.
    sizes: given for an evaluation, which may also choose other `data`: what this takes over from the run, as
    a `data` node.
    """
    library = Library(config_dir)
    request = read_overrides(overrides, library)
    problems = list(request.problems)
    names: dict[str, str | None] = choices.chosen(saved)
    config = OmegaConf.create(
        {**{key: value for key, value in saved.items() if key != choices.KEY}, "trusted": []}
    )
    for choice in request.choices:
        group, _, option = choice.partition("=")
        if group in CHOSEN_ANEW and group in saved:
            config[group] = OmegaConf.create(library.unresolved([choice])[group])
            names[group] = option
        elif group in CHOSEN_ANEW:
            problems.append(f"{choice}: an evaluation has no {group}; leave it out")
        elif group == "data" and sizes is not None:
            chosen = library.load([choice])
            problems += plugins.file_problems({"data": chosen["data"]}, library, {"data": option})
            data = plugins.with_ranges({"data": chosen["data"]}, library, {"data": option})["data"]
            config[group] = OmegaConf.create(with_sizes(data, sizes))
            names[group] = option
        else:
            problems.append(fixed(choice, group))
    allowed = plain(config)
    problems += [
        fixed(written(override), fixed_to)
        for override in request.values
        if (fixed_to := fixed_group(override))
    ]
    values, found = known_values(
        [override for override in request.values if not fixed_group(override)], allowed, library
    )
    for override in library.parse(values):
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    cfg, wrong = schema.check_types(allowed, plain(config))
    problems += found + wrong + schema.value_problems(cfg) + about_problems(cfg)
    problems += target_problems(cfg, cfg["trusted"] if isinstance(cfg["trusted"], list) else [])
    problems += [] if sizes is not None else grid_problems(cfg)
    raise_if(problems)
    return {choices.KEY: names, **with_absolute(cfg)}


def with_absolute(cfg: dict[str, Any]) -> dict[str, Any]:
    """A file of tasks by its whole path, since a run may be resumed from another folder."""
    tasks = cfg["eval"].get("tasks")
    try:
        whole = None if tasks is None else str(Path(tasks).expanduser().absolute())
    except RuntimeError as error:  # ~nobody
        raise ConfigError(f"eval.tasks={tasks}: {error}; write the whole path") from error
    return {**cfg, "eval": {**cfg["eval"], "tasks": whole}}


def grid_problems(cfg: Mapping[str, Any]) -> list[str]:
    """The final evaluation of a run is one."""
    grid = (cfg.get("eval") or {}).get("grid")
    if grid is None:
        return []
    return [
        f"eval.grid={schema.show(grid)} is of evaluations: judge the run when it has ended, with metalearn "
        f"eval RUN_DIR {shlex.quote(f'eval.grid={schema.show(grid)}')}"
    ]


def with_sizes(data: dict[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A `data` node with the sizes of a run in place of its own, where it has keys for them."""
    train = {
        name: size for name, size in (sizes.get("train") or {}).items() if name in (data.get("train") or {})
    }
    kept = {name: sizes[name] for name in SIZES if name in data and name in sizes}
    return {**data, **kept, **({"train": {**data["train"], **train}} if train else {})}


def chosen_without_experiment(base: dict[str, Any]) -> list[str]:
    names = base["hydra"]["runtime"]["choices"]
    return [f"{group}={names[group]}" for group in GROUPS if group != "experiment" and names.get(group)]


def blame_experiment(problem: str, names: Mapping[str, Any]) -> str:
    """A key that nothing has can only come from the recipe, whose choices the command line may have
    replaced.
    """
    key, is_key, _ = problem.partition(" is not a key")
    group = key.partition(".")[0]
    if not is_key or not names.get("experiment"):
        return problem
    if key in compatibility.MOVED:
        return f"experiment={names['experiment']} sets {key}, which is now {compatibility.MOVED[key]}"
    return f"experiment={names['experiment']} sets {key}, which {group}={names.get(group)} does not have"


def refuse_unkept(cfg: Mapping[str, Any]) -> None:
    """Raise ConfigError if the final evaluation of training asks for a checkpoint that may be gone by
    then.
    """
    raise_if(schema.unkept_problems(cfg))
