"""spec.json: what `load` needs of a run beside its weights. What tasks look like, and what was done to their
inputs.

It is written from the source itself and read without it, so that a run can be used where its data are not. It
may be a stranger's: names pass the allow-list, values have their types and bounds, and the sha256 in it finds
damage.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from metalearn.build.instantiate import resolve
from metalearn.config.safety import target_problems
from metalearn.core import InputSpec, Objective, Source, TaskSpec
from metalearn.data.preprocessing import Preprocessing
from metalearn.errors import CheckpointError, ConfigError, raise_if
from metalearn.files import read_json

NAME_OF_FILE = "spec.json"
FORMAT_VERSION = 1
Described = tuple[TaskSpec, Preprocessing]
LARGEST = 2**31  # of any count
LARGEST_ROW = 2**26  # numbers in one input


def describe(source: Source) -> dict[str, Any]:
    """The content of spec.json. ValueError for a source whose specification or preprocessing could not be
    read again.
    """
    spec, said = source.spec("train"), source.preprocessing()
    content = signed({"format_version": FORMAT_VERSION, "task": _task_of(spec), "preprocessing": said})
    module = type(spec.objective).__module__
    try:  # what cannot be read back is not written; the objective's module is one that already runs here
        _task(json.loads(json.dumps(content["task"])), [] if module.startswith("metalearn.") else [module])
    except ConfigError as error:
        raise ValueError(str(error)) from error
    Preprocessing.of(spec.input_spec, said)
    return content


def read(run_dir: Path, trusted: Sequence[str]) -> Described | None:
    """What a run's spec.json says; None for a run that is older than it.

    CheckpointError if it is damaged, ConfigError for an objective of a package that is not trusted.
    """
    path = run_dir / NAME_OF_FILE
    if not os.path.lexists(path):
        return None
    try:
        content = _checked(read_json(path))
        spec = _task(content["task"], list(trusted))
        return spec, Preprocessing.of(spec.input_spec, _mapping("preprocessing", content["preprocessing"]))
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} is not valid: {reason}; restore it from a backup") from error


def signed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with a sha256 over everything else in it. ValueError for what JSON does not have."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    try:
        text = json.dumps(rest, sort_keys=True, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(
            f"the specification and the preprocessing of a run are JSON values: {error}"
        ) from error
    return {**rest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _checked(content: Any) -> dict[str, Any]:
    content = _mapping("it", content)
    if content.get("format_version") != FORMAT_VERSION:
        version = _short(content.get("format_version"))
        raise ValueError(f"its format_version is {version}, this metalearn reads {FORMAT_VERSION}")
    if content.get("sha256") != signed(content)["sha256"]:
        raise ValueError("it does not have the sha256 that was written into it")
    if content.keys() != {"format_version", "task", "preprocessing", "sha256"}:
        raise ValueError(f"it has the keys {', '.join(sorted(content))}")
    return content


def _task_of(spec: TaskSpec) -> dict[str, Any]:
    """The fields of a specification as JSON values, without those that say nothing and are none."""
    found: dict[str, Any] = {}
    for field in fields(TaskSpec):
        value = getattr(spec, field.name)
        if isinstance(value, InputSpec):
            found[field.name] = value._asdict()
        elif field.name == "input_spec":
            found[field.name] = {"inputs": {name: one._asdict() for name, one in value.items()}}
        elif field.name == "objective":
            cls = type(value)
            found[field.name] = {"_target_": f"{cls.__module__}.{cls.__qualname__}", **_attributes(value)}
        elif isinstance(value, str | int) or field.default is MISSING or value != field.default:
            found[field.name] = value
    return found


def _task(saved: Any, trusted: list[str]) -> TaskSpec:
    saved = _mapping("task", saved)
    known = {field.name: field for field in fields(TaskSpec)}
    if saved.keys() - known.keys():
        raise ValueError(f"task.{_short(min(saved.keys() - known.keys()))} is not known to this metalearn")
    kinds = get_args(get_type_hints(TaskSpec)["kind"])
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name not in saved and field.default is not MISSING:
            continue
        value = saved.get(name)
        if name == "input_spec":
            values[name] = _input_spec(value)
        elif name == "objective":
            values[name] = _objective(value, trusted)
        elif name == "kind":
            if value not in kinds:
                raise ValueError(f"task.kind is {_short(value)}; expected one of {', '.join(kinds)}")
            values[name] = value
        else:
            values[name] = _number(field, value)
    return TaskSpec(**values)


def _number(field: Field[Any], value: Any) -> Any:
    """The value of a field that is a count or a yes or no."""
    if field.type == "bool" and type(value) is bool:
        return value
    least = 1 if field.name == "num_outputs" else 0
    if field.type == "int" and type(value) is int and least <= value < LARGEST:
        return value
    expected = {"bool": "true or false", "int": f"a count from {least}"}.get(
        str(field.type), "what can be written down"
    )
    raise ValueError(f"task.{field.name} is {_short(value)}; expected {expected}")


def _input_spec(saved: Any) -> InputSpec | dict[str, InputSpec]:
    saved = _mapping("task.input_spec", saved)
    if saved.keys() == {"inputs"} and saved["inputs"]:
        return {
            name: _one_input(one) for name, one in _mapping("task.input_spec.inputs", saved["inputs"]).items()
        }
    return _one_input(saved)


def _one_input(saved: Any) -> InputSpec:
    saved = _mapping("task.input_spec", saved)
    shape, categories = saved.get("shape"), saved.get("num_categories")
    right = isinstance(shape, list) and all(type(size) is int and 1 <= size <= LARGEST_ROW for size in shape)
    if saved.keys() - {"shape", "num_categories"} or not right or math.prod(shape) > LARGEST_ROW:
        expected = f"a shape of at most {LARGEST_ROW} numbers, and num_categories"
        raise ValueError(f"task.input_spec is {_short(saved)}; expected {expected}")
    if categories is not None and not (type(categories) is int and 1 <= categories < LARGEST):
        raise ValueError(f"task.input_spec.num_categories is {_short(categories)}; expected a count or null")
    return InputSpec(tuple(shape), categories)


def _objective(saved: Any, trusted: list[str]) -> Objective:
    """The objective that a class makes of these arguments, which it must keep as its attributes: else it
    would be another one.
    """
    node = _mapping("task.objective", saved)
    raise_if(target_problems({"objective": node}, trusted))
    cls: Any = resolve("objective._target_", str(node.get("_target_")), object, trusted)
    if not all(callable(getattr(cls, name, None)) for name in ("loss", "metrics")):
        raise ValueError(f"task.objective is {node['_target_']}, which has no loss and metrics")
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    words = ", ".join(f"{key}={str(value)[:60]}" for key, value in arguments.items()) or "nothing"
    try:
        made: Objective = cls(**arguments)
        kept = json.loads(json.dumps(_attributes(made)))
    except TypeError as error:
        raise ValueError(f"task.objective: {node['_target_']} takes other arguments: {error}") from error
    except Exception as error:
        raise ValueError(
            f"task.objective: {node['_target_']} cannot be made of {words}: {type(error).__name__}: {error}"
        ) from error
    if kept != arguments:
        raise ValueError(
            f"task.objective: {node['_target_']} made of {words} does not have just these as its attributes"
        )
    return made


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds, in its slots too."""
    slots = [
        name
        for cls in type(value).__mro__
        for name, member in vars(cls).items()
        if inspect.ismemberdescriptor(member)
    ]
    return {
        **{name: getattr(value, name) for name in slots if hasattr(value, name)},
        **getattr(value, "__dict__", {}),
    }


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {_short(value)}; expected several keys")
    return value


def _short(value: Any) -> str:
    return f"{str(value)[:60]!r}"
