"""What the YAMLs of plugins say of their keys, brought into a configuration: ranges, and where one is wrong.

A YAML that names a class of ours without a range for one of its keys has the range that our own YAML gives.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from metalearn.config import ranges, schema
from metalearn.config.loader import Library, choices_in, packaged_folder
from metalearn.config.schema import hint, lookup

GROUPS = ("algo", "data", "model", "optimizer")  # whose YAMLs name a class, with keys of its own
# Keys that our YAMLs of these groups had once, and where they stand now.
MOVED = {
    "algo": {
        key: f"about.suits.{key}; a dial of your own needs another name"
        for key in ("plan", "chunk", "norm_statistics")
    },
    "optimizer": {
        "schedule": "a group, chosen with optimizer/schedule=NAME",
        "clip": "a group, chosen with optimizer/clip=NAME",
    },
}


def with_ranges(cfg: Mapping[str, Any], library: Library, names: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the ranges of our own YAMLs where a user's has none, and with those alone whose
    keys there are.

    names: what was chosen of each group.
    """
    found = dict(cfg)
    for group in GROUPS:
        node = cfg.get(group)
        if isinstance(node, Mapping):
            ours = {} if is_ours(group, names.get(group), library) else shipped(group, node.get("_target_"))
            found[group] = with_own(node, ours)
    return found


def with_todays(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run with the ranges that it was begun with, or those of our own YAMLs today for
    a group that has none.
    """
    found = dict(saved)
    for group in GROUPS:
        node = saved.get(group)
        if isinstance(node, Mapping) and not lookup(node, "about.ranges")[0]:
            found[group] = with_own(node, shipped(group, node.get("_target_")))
    return found


def with_own(node: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """A group whose ranges are its own, before `ours`, without those of keys that it does not have."""
    about = {} if node.get("about") is None else node["about"]
    own = about.get("ranges", {}) if isinstance(about, Mapping) else None
    if not isinstance(own, Mapping):  # which `about_problems` has a sentence for
        return dict(node)
    kept = {key: value for key, value in {**ours, **own}.items() if lookup(node, key)[0]}
    if not kept and not own:
        return dict(node)
    return {**node, "about": {**about, "ranges": kept}}


def is_ours(group: str, name: Any, library: Library) -> bool:
    """Whether a choice is one of the YAMLs that come with the package."""
    return isinstance(name, str) and library.path(group, name).parent == packaged_folder() / group


def shipped(group: str, target: Any) -> dict[str, Any]:
    """The ranges that our own YAML of a class gives; none for a class that is not ours."""
    for path in choices_in(packaged_folder() / group):
        # As text: to parse all of them would take longer than all else that a configuration is asked for.
        if f"_target_: {target}" in path.read_text(encoding="utf-8").splitlines():
            about = Library().read(group, path.stem).get("about", {})
            return copy.deepcopy(about.get("ranges", {}))
    return {}


def file_problems(cfg: Mapping[str, Any], library: Library, names: Mapping[str, Any]) -> list[str]:
    """What is wrong with ranges and keys of a user's YAMLs, each with its file; ours are tested.

    cfg: as it was composed from them.
    """
    problems, judged = [], set()
    if lookup(cfg, "about.ranges")[0]:
        problems.append("about.ranges stands in a recipe; ranges stand in the YAML whose keys they are of")
    for group in GROUPS:
        name, node = names.get(group), cfg.get(group)
        if not isinstance(name, str) or not isinstance(node, Mapping) or is_ours(group, name, library):
            continue
        *_, (own, _) = files = library.files(group, name)
        for path, content in files:
            raw: Any = OmegaConf.to_container(content)
            problems += [
                f"{path}: {group}.{key} is now {place}"
                for key, place in MOVED.get(group, {}).items()
                if key in raw
            ]
            said = lookup(raw, "about.ranges")[1]
            for key, written in said.items() if isinstance(said, Mapping) else ():
                judged.add(f"{group}.about.ranges.{key}")
                try:
                    ranges.parse(written)
                except ValueError as error:
                    problems.append(f"{path}: about.ranges.{key}: {error}")
                if path == own and not lookup(node, str(key))[0]:
                    keys = [known for known, _ in schema.leaves(node)]
                    problems.append(f"{path}: about.ranges.{key}: it has no key {key}{hint(str(key), keys)}")
    return problems + [
        f"{name}: {problem}" for name, problem in ranges.problems_of_plugins(cfg) if name not in judged
    ]
