"""Whether a method takes these tasks, and can be mapped by this plan: the one place where what it declares
becomes a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping

from metalearn.core import Algorithm, TaskSpec

Method = type[Algorithm] | Algorithm


def misfits(
    name: str, method: Method, spec: TaskSpec, others: Mapping[str, Method] | None = None
) -> list[str]:
    """A sentence for each declaration that speaks against these tasks.

    name: as the person knows the method. others: those to choose from instead, by their names; the sentences
    name which of them fit.
    """
    problems = obstacles(method, spec)
    fitting = [other for other, cls in (others or {}).items() if not obstacles(cls, spec)]
    way_out = f"choose other data, or one of {', '.join(fitting)}" if fitting else "choose other data"
    return [f"{name} {problem}; {way_out}" for problem in problems]


def obstacles(method: Method, spec: TaskSpec) -> list[str]:
    """What the method says of itself, and what these tasks are instead."""
    if spec.kind not in method.kinds:
        return [
            f"takes tasks of {' and '.join(method.kinds)} (its `kinds`), but these are tasks of {spec.kind}"
        ]
    found = []
    if spec.ragged and not method.handles_ragged:
        found.append(
            "takes tasks without padded rows only (its `handles_ragged` is False), but these are ragged"
        )
    if method.trains_on == "examples" and not spec.num_train_classes:
        found.append(
            "trains on minibatches of labelled examples (its `trains_on`), but these data have no classes to "
            "draw them from"
        )
    return found


def plan_misfits(name: str, method: Method, plan: str) -> list[str]:
    """A sentence if tasks of this method cannot be mapped by device.plan=PLAN; `auto` tries only those that
    it declares.
    """
    if plan == "auto" or plan in method.plans:
        return []
    return [
        f"device.plan={plan}, but {name} maps its tasks by {' or '.join(method.plans)} only; set "
        f"device.plan={method.plans[0]}"
    ]


def rank_misfits(name: str, method: Method, ranks: int | str) -> list[str]:
    """A sentence if several ranks cannot share the tasks of an outer step of this method."""
    if method.tasks_independent or ranks in (1, "auto"):
        return []
    return [
        f"device.ranks={ranks}, but {name} takes the tasks of an outer step one after the other, each from "
        "what the one before left (its `tasks_independent` is False); set device.ranks=1"
    ]
