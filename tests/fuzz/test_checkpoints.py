"""Bytes, manifests, facts and tensors of checkpoints that somebody else wrote: loaded exactly, or refused as
CheckpointError.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from metalearn.data.files.cache import cached
from metalearn.errors import CheckpointError
from metalearn.rundir.checkpoints import MANIFEST, METADATA, TENSORS, CheckpointStore
from metalearn.rundir.state import pack, restore
from tests.fuzz.cases import answered, cases, mutations
from tests.fuzz.test_documents import TREES

PLAN = {"name": "vmap", "chunk": 4, "compile": False}
FACTS_OF_A_RUN = {
    "config": {"seed": 0},
    "data_sha256": "00",
    "step": 4,
    "evaluated_step": 4,
    "window_count": 0,
    "metrics_offset": 10,
}
FACTS_OF_A_RUN |= {"record": [[2, 0.5], [4, None]], "optimizer": [], "plan": PLAN, "best": 2}
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16])
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def learner() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("checkpoints")
    CheckpointStore(run_dir).save(4, pack(*learner())[0], FACTS_OF_A_RUN)
    return run_dir / "checkpoints" / "step-000004"


@pytest.fixture(scope="module")
def folder(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that every case overwrites."""
    run_dir = tmp_path_factory.mktemp("damaged")
    shutil.copytree(template, run_dir / "checkpoints" / "step-000004")
    return run_dir / "checkpoints" / "step-000004"


def write(folder: Path, template: Path, *, sign: bool = False, **contents: bytes) -> None:
    for name in (TENSORS, METADATA, MANIFEST):
        (folder / name).write_bytes(contents.get(name.partition(".")[0], (template / name).read_bytes()))
    if sign:
        files = {name: (folder / name).read_bytes() for name in (TENSORS, METADATA)}
        listed = {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        }
        (folder / MANIFEST).write_text(json.dumps({"format_version": 1, "files": listed}))


def load(folder: Path) -> Any:
    """The checkpoint, or why there is none."""
    found = answered(CheckpointStore(folder.parents[1]).newest)
    assert isinstance(found, CheckpointError) or found.step == 4
    return found


@cases(150)
@given(data=st.data(), name=st.sampled_from(["tensors", "facts"]))
def test_damage_without_a_new_manifest_is_always_found(
    data: st.DataObject, name: str, template: Path, folder: Path
) -> None:
    good = next(template.glob(f"{name}.*")).read_bytes()
    damaged = data.draw(mutations(good))
    write(folder, template, **{name: damaged})
    assert isinstance(load(folder), CheckpointError) == (damaged != good)


@cases(150)
@given(data=st.data())
def test_a_damaged_manifest_is_read_or_refused(data: st.DataObject, template: Path, folder: Path) -> None:
    write(folder, template, manifest=data.draw(mutations((template / MANIFEST).read_bytes())))
    load(folder)


@cases(100)
@given(tree=TREES)
def test_a_manifest_of_anything_is_refused(tree: Any, template: Path, folder: Path) -> None:
    write(folder, template, manifest=json.dumps({"format_version": 1, "files": tree}).encode())
    assert isinstance(load(folder), CheckpointError)


@cases(150)
@given(data=st.data())
def test_damaged_tensors_with_a_new_manifest_are_loaded_or_refused(
    data: st.DataObject, template: Path, folder: Path
) -> None:
    write(folder, template, sign=True, tensors=data.draw(mutations((template / TENSORS).read_bytes())))
    found = load(folder)
    if not isinstance(found, CheckpointError):
        answered(lambda: restore(*learner(), found.tensors, found.metadata["optimizer"]))


@cases(150)
@given(data=st.data())
def test_other_tensors_with_a_new_manifest_are_used_or_refused(
    data: st.DataObject, template: Path, folder: Path
) -> None:
    tensors = pack(*learner())[0]
    names = st.one_of(
        st.sampled_from([*tensors, "optimizer.x.y", "optimizer.9.exp_avg", "window.loss"]),
        st.text(max_size=10),
    )
    for name in data.draw(st.lists(names, min_size=1, max_size=3)):
        if data.draw(st.booleans()):
            tensors.pop(name, None)
        else:
            tensors[name] = torch.zeros(data.draw(SHAPES), dtype=data.draw(DTYPES))
    write(folder, template, sign=True, tensors=save(tensors))
    found = load(folder)
    if not isinstance(found, CheckpointError):
        model, optimizer = learner()
        if answered(lambda: restore(model, optimizer, found.tensors, found.metadata["optimizer"])) is None:
            optimizer.step()


@cases(150)
@given(data=st.data(), value=TREES)
def test_other_facts_with_a_new_manifest_are_used_or_refused(
    data: st.DataObject, value: Any, template: Path, folder: Path
) -> None:
    facts = {**FACTS_OF_A_RUN, data.draw(st.sampled_from([*FACTS_OF_A_RUN, "new"])): value}
    write(folder, template, sign=True, facts=json.dumps(facts).encode())
    found = load(folder)
    if not isinstance(found, CheckpointError):
        answered(lambda: restore(*learner(), found.tensors, found.metadata["optimizer"]))


@cases(60)
@given(data=st.data())
def test_a_damaged_cache_is_made_anew(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cache")

    def build() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {"images": torch.arange(50, dtype=torch.uint8)}, {"classes": ["a"]}

    good = cached(folder, "x", build)
    [path] = folder.iterdir()
    path.write_bytes(data.draw(mutations(path.read_bytes())))
    found = cached(folder, "x", build)
    assert found.sha256 == good.sha256
    assert torch.equal(found.tensors["images"], good.tensors["images"])
