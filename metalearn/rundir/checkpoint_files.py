"""The files of one checkpoint: which they are, how they vouch for each other, and how they are read again.

`weights.safetensors` is what `metalearn.load` needs: parameters and buffers under the names of the
algorithm's `state_dict`. `training.safetensors` is what only a resumed run needs: optimizer, random state,
running sums. `metadata.json` is written last: its first line is the sha256 of all that follows in it, and it
lists the size and sha256 of the other two. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from metalearn.errors import CheckpointError
from metalearn.files import read_bytes, read_text
from metalearn.rundir.metadata import Metadata, checked

WEIGHTS_FILE, TRAINING_FILE, METADATA = "weights.safetensors", "training.safetensors", "metadata.json"
FORMAT_VERSION = 2
OWN = ("sha256", "format_version", "files")  # keys of metadata.json that are about the files
NAME = re.compile(r"step-(\d{6,18})", re.ASCII)
# What format 1 wrote: all tensors in one file, the metadata in another, and a manifest of both.
OLD_TENSORS, OLD_METADATA, OLD_MANIFEST = "tensors.safetensors", "facts.json", "manifest.json"
# What makes a checkpoint unreadable: whoever wrote the files may also have written their sums.
DAMAGES = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    MemoryError,
    OverflowError,
    SafetensorError,
)


class Files(NamedTuple):
    """contents: the bytes of the tensor files that were asked for, by name; each as it was written."""

    contents: dict[str, bytes]
    metadata: Metadata


def encoded(tensor_files: dict[str, bytes], metadata: dict[str, Any]) -> bytes:
    """The content of metadata.json beside these files."""
    body = {"format_version": FORMAT_VERSION, "files": _sums(tensor_files), **metadata}
    rest = json.dumps(body, indent=1).encode()[2:]  # behind the brace and its line end
    return first_line(rest) + rest


def first_line(rest: bytes) -> bytes:
    """The line that vouches for what follows it in metadata.json."""
    return b'{"sha256": "%s",\n' % hashlib.sha256(rest).hexdigest().encode()


def read(path: Path, step: int, names: Collection[str] = (WEIGHTS_FILE, TRAINING_FILE)) -> Files:
    """The metadata of a checkpoint and those of its tensor files that have these names, verified.

    A checkpoint of format 1 has one file of tensors, which is read whatever names says. Raises OSError for
    what cannot be read and one of DAMAGES for what is not as it was written; see `damage_named`.
    """
    if not path.is_dir():
        raise ValueError("it is missing")
    if is_old(path):
        return _read_old(path, step)
    tree = _unsealed(read_bytes(path / METADATA, None))
    _require_format(tree, FORMAT_VERSION)
    if sorted(tree["files"]) != [TRAINING_FILE, WEIGHTS_FILE]:
        raise ValueError(f"its {METADATA} lists {sorted(tree['files'])}")
    contents = {name: _verified(path / name, tree["files"][name]) for name in names}
    return Files(contents, checked(_without_own(tree), step, path / METADATA))


def read_metadata(path: Path, step: int) -> Metadata:
    """The metadata alone; the other files are not looked at. Raises as `read` does."""
    if is_old(path):
        _require_format(json.loads(read_bytes(path / OLD_MANIFEST, None)), 1)
        return checked(json.loads(read_bytes(path / OLD_METADATA, None)), step, path / OLD_METADATA)
    tree = _unsealed(read_bytes(path / METADATA, None))
    _require_format(tree, FORMAT_VERSION)
    return checked(_without_own(tree), step, path / METADATA)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what is wrong with the checkpoint at path into CheckpointError with its name and the reason."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} is not valid: {error.strerror or error} ({error.filename})") from error
    except DAMAGES as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{path} is not valid: {reason}") from error


def pointed(folder: Path, name: str) -> int | None:
    """The step that `last` or `best` names in a folder of checkpoints; None if there is no such pointer."""
    try:
        match = NAME.fullmatch(read_text(folder / name, 100).strip())
    except (OSError, ValueError):
        return None
    return int(match[1]) if match else None


def steps(folder: Path) -> list[int]:
    """Steps with a checkpoint in a folder of them, valid or not, in order."""
    found = (NAME.fullmatch(path.name) for path in folder.glob("step-*"))
    return sorted(step for match in found if match and name_of(step := int(match[1])) == match[0])


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def is_old(path: Path) -> bool:
    """Whether a checkpoint is of format 1."""
    return (path / OLD_MANIFEST).exists() and not (path / METADATA).exists()


def located(path: Path) -> tuple[Path, str | None]:
    """The run folder, and best, last or step-NUMBER if the path is that of a checkpoint in one.

    RUN_DIR/checkpoints/best is the pointer's own path, and stands for the checkpoint that it names. A folder
    with a config.yaml is a run, whatever it is called.
    """
    whole = path if path.parent.name else path.absolute()
    if (path / "config.yaml").exists():
        return path, None
    if whole.parent.name == "checkpoints" and (whole.name in ("best", "last") or NAME.fullmatch(whole.name)):
        return whole.parent.parent, whole.name
    return path, None


def tensor_shapes(content: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (type, shape)} of a verified safetensors file, in order of the names. Needs no torch."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in sorted(header.items())}


def _unsealed(content: bytes) -> dict[str, Any]:
    line, _, rest = content.partition(b"\n")
    # before anything is parsed: the content may be of any depth and size
    if line + b"\n" != first_line(rest):
        raise ValueError(f"{METADATA} does not have the sha256 that was written")
    tree = json.loads(content)
    if not isinstance(tree, dict):
        raise ValueError(f"{METADATA} holds a {type(tree).__name__}")
    return tree


def _without_own(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name not in OWN}


def _require_format(tree: dict[str, Any], version: int) -> None:
    found = tree.get("format_version")
    if found != version:
        raise ValueError(f"its format_version is {found}, this metalearn reads {FORMAT_VERSION} and 1")


def _sums(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    return {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }


def _verified(path: Path, listed: dict[str, Any]) -> bytes:
    size = path.stat().st_size
    if size != listed["size"]:
        raise ValueError(f"{path.name} has {size} bytes, {listed['size']} were written")
    content = read_bytes(path, None)
    if hashlib.sha256(content).hexdigest() != listed["sha256"]:
        raise ValueError(f"{path.name} does not have the sha256 that was written")
    return content


def _read_old(path: Path, step: int) -> Files:
    manifest = json.loads(read_bytes(path / OLD_MANIFEST, None))
    _require_format(manifest, 1)
    if sorted(manifest["files"]) != [OLD_METADATA, OLD_TENSORS]:
        raise ValueError(f"its manifest lists {sorted(manifest['files'])}")
    contents = {name: _verified(path / name, listed) for name, listed in manifest["files"].items()}
    metadata = checked(json.loads(contents.pop(OLD_METADATA)), step, path / OLD_METADATA)
    return Files(contents, metadata)
