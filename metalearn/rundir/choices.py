"""Which YAML of each group a configuration was made of: `choices` in config.yaml, and names in results.json.

No science follows from a name, so that neither a resumed run nor the job of a sweep is another one because of
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

KEY = "choices"
GROUPS = (
    *("algo", "data", "model", "optimizer", "optimizer/schedule", "optimizer/clip"),
    *("device", "logger", "experiment"),
)
NAMED_IN_RESULTS = ("algo", "data", "model", "experiment")


def chosen(cfg: Mapping[str, Any]) -> dict[str, str | None]:
    """The name of the choice of every group, None where there was none.

    A run that is older than this key has the name that its class suggests, and no recipe.
    """
    found = cfg.get(KEY)
    known = found if isinstance(found, Mapping) else {}
    return {
        group: known[group] if group in known else suggested(group, node_of(cfg, group)) for group in GROUPS
    }


def node_of(cfg: Mapping[str, Any], group: str) -> Any:
    """What a configuration holds of a group; optimizer/schedule lies in optimizer."""
    node: Any = cfg
    for part in group.split("/"):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def suggested(group: str, node: Any) -> str | None:
    """omniglot for metalearn.data.omniglot.Omniglot, adam for torch.optim.Adam, none for
    metalearn.loggers.Logger.
    """
    if not isinstance(node, Mapping):
        return None
    if group == "device":
        name = str(node.get("name")).partition(":")[0]
        return name if name in ("auto", "cpu", "cuda") else None
    if group == "optimizer/schedule":
        return node.get("name") if isinstance(node.get("name"), str) else None
    if group == "optimizer/clip":
        return next((key for key in ("norm", "value") if node.get(key) is not None), "none")
    target = node.get("_target_")
    if not isinstance(target, str) or "." not in target:
        return None
    *modules, name = target.split(".")
    if target == "metalearn.loggers.Logger":
        return "none"
    return name.lower() if modules[0] == "torch" else modules[-1]


def choice_problems(saved: Mapping[str, Any]) -> Iterator[str]:
    """What is no name in the choices of a saved configuration."""
    found = saved.get(KEY, {})
    if not isinstance(found, Mapping):
        yield f"{KEY}={found} is not the name of a choice for each group"
        return
    for group, name in found.items():
        if group not in GROUPS:
            yield f"{KEY}.{group} is no group; the groups are {', '.join(GROUPS)}"
        elif name is not None and not isinstance(name, str):
            yield f"{KEY}.{group}={name} is not a name"


def as_file_name(name: str | None) -> str:
    """A choice as a part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", name or "").strip(".-") or "unnamed"
