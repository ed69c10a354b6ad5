"""Prepared tensors on disk, one safetensors file each, with a sha256 of the content inside.

A file is written under a temporary name, synced and renamed, so that two processes may build it at once:
the last one wins and both files were complete. What does not verify is rebuilt, with a line in the log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metalearn.core import Location
from metalearn.errors import ConfigError

log = logging.getLogger(__name__)

CACHE = Location("cache_dir", made=True)  # for the `locations` of a source with such a key


class Prepared(NamedTuple):
    """tensors: by name. facts: JSON values. sha256: over both, facts[ORIGIN] aside."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    sha256: str


# A fact about what a build was made from, which its sha256 leaves out: fingerprints stay those of builds that
# did not note it.
ORIGIN = "origin"
Build = Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]


def cached(folder: Path, name: str, build: Build) -> Prepared:
    """What `build` makes, read from `folder/name.safetensors` if a valid one lies there, else built and
    written.

    name: must change with everything that `build` depends on.
    Raises ConfigError if the folder cannot be written.
    """
    path = folder / f"{name}.safetensors"
    if path.exists():
        try:
            return _read(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            log.warning("%s is corrupt (%s); building it again", path, error)
    _check_writable(folder)
    log.info("preparing %s", path)
    tensors, facts = build()
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    prepared = Prepared(tensors, json.loads(json.dumps(facts)), digest(tensors, without_origin(facts)))
    _write(path, prepared)
    return prepared


def digest(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    """sha256 over names, types, shapes and bytes of the tensors, and over the facts."""
    state = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def without_origin(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != ORIGIN}


def key_of(**parts: Any) -> str:
    """Twelve hex digits of a sha256 over JSON values: the part of a cache name that stands for the dials."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


NO_ORIGIN = key_of(origin=None)  # also of what was built before origins were noted


def _read(path: Path) -> Prepared:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    facts = json.loads(metadata["facts"])
    found = digest(tensors, without_origin(facts)), key_of(origin=facts.get(ORIGIN))
    if found != (metadata["sha256"], metadata.get("origin", NO_ORIGIN)):
        raise ValueError("its sha256 does not match its content")
    return Prepared(tensors, facts, metadata["sha256"])


def _write(path: Path, prepared: Prepared) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    origin = key_of(origin=prepared.facts.get(ORIGIN))
    metadata = {"facts": json.dumps(prepared.facts), "sha256": prepared.sha256, "origin": origin}
    try:
        save_file(prepared.tensors, temporary, metadata=metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(_cannot_write(path.parent, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _check_writable(folder: Path) -> None:
    """Fail before the work, not after it."""
    probe = folder / f".probe-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(_cannot_write(folder, error)) from error


def _cannot_write(folder: Path, error: Exception) -> str:
    return (
        f"data.cache_dir={folder} cannot be written ({error}); choose another folder with data.cache_dir=PATH"
    )
