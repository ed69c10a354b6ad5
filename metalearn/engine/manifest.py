"""The manifest of a checkpoint: which files its folder holds, and their content, byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

from metalearn.documents import read_bytes

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    """What to write beside these files, by name."""
    listed = {name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()}
    return json.dumps({"format_version": FORMAT_VERSION, "files": listed}, indent=1).encode()


def verified(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The files of a checkpoint, which have these names. ValueError, KeyError or TypeError for one that is not as the manifest says."""
    if not path.is_dir():
        raise ValueError("it is missing")
    manifest = json.loads(read_bytes(path / MANIFEST, None))
    if manifest["format_version"] != FORMAT_VERSION:
        raise ValueError(f"its format_version is {manifest['format_version']}, this metalearn reads {FORMAT_VERSION}")
    if sorted(manifest["files"]) != sorted(names):
        raise ValueError(f"its manifest lists {sorted(manifest['files'])}")
    contents = {}
    for name, listed in manifest["files"].items():
        size = (path / name).stat().st_size
        if size != listed["size"]:
            raise ValueError(f"{name} has {size} bytes, {listed['size']} were written")
        content = read_bytes(path / name, None)
        if hashlib.sha256(content).hexdigest() != listed["sha256"]:
            raise ValueError(f"{name} does not have the sha256 that was written")
        contents[name] = content
    return contents
