"""Bytes, sums, metadata and tensors of checkpoints that somebody else wrote: loaded exactly, or refused as
CheckpointError.
"""

from __future__ import annotations

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
from metalearn.rundir import checkpoint_files
from metalearn.rundir.checkpoint_files import METADATA, TRAINING_FILE, WEIGHTS_FILE
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.rundir.state import WEIGHTS, pack, restore
from tests.fuzz.cases import answered, cases, mutations
from tests.fuzz.test_documents import TREES

PLAN = {"name": "vmap", "chunk": 4, "compile": False}
METADATA_OF_A_RUN = {
    "config": {"seed": 0},
    "data_sha256": "00",
    "step": 4,
    "evaluated_step": 4,
    "window_count": 0,
    "metrics_offset": 10,
}
METADATA_OF_A_RUN |= {"record": [[2, 0.5], [4, None]], "optimizer": [], "plan": PLAN, "best": 2}
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
    CheckpointStore(run_dir).save(4, pack(*learner())[0], METADATA_OF_A_RUN)
    return run_dir / "checkpoints" / "step-000004"


@pytest.fixture(scope="module")
def folder(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that every case overwrites."""
    run_dir = tmp_path_factory.mktemp("damaged")
    shutil.copytree(template, run_dir / "checkpoints" / "step-000004")
    return run_dir / "checkpoints" / "step-000004"


def write(folder: Path, template: Path, *, sign: bool = False, **contents: bytes) -> None:
    """sign: make the sums those of the files; metadata are then a JSON mapping without sums."""
    for name in (WEIGHTS_FILE, TRAINING_FILE, METADATA):
        (folder / name).write_bytes(contents.get(name.partition(".")[0], (template / name).read_bytes()))
    if sign:
        files = {name: (folder / name).read_bytes() for name in (WEIGHTS_FILE, TRAINING_FILE)}
        metadata = json.loads(contents.get("metadata", json.dumps(METADATA_OF_A_RUN)))
        (folder / METADATA).write_bytes(checkpoint_files.encoded(files, metadata))


def load(folder: Path) -> Any:
    """The checkpoint, or why there is none."""
    found = answered(CheckpointStore(folder.parents[1]).newest)
    assert isinstance(found, CheckpointError) or found.step == 4
    return found


@cases(150)
@given(data=st.data(), name=st.sampled_from(["weights", "training", "metadata"]))
def test_damage_without_new_sums_is_always_found(
    data: st.DataObject, name: str, template: Path, folder: Path
) -> None:
    good = next(template.glob(f"{name}.*")).read_bytes()
    damaged = data.draw(mutations(good))
    write(folder, template, **{name: damaged})
    assert isinstance(load(folder), CheckpointError) == (damaged != good)


@cases(150)
@given(data=st.data())
def test_damaged_metadata_with_a_new_sum_are_read_or_refused(
    data: st.DataObject, template: Path, folder: Path
) -> None:
    _, _, rest = (template / METADATA).read_bytes().partition(b"\n")
    damaged = data.draw(mutations(rest))
    write(folder, template, metadata=checkpoint_files.first_line(damaged) + damaged)
    load(folder)


@cases(100)
@given(tree=TREES)
def test_a_list_of_anything_is_refused(tree: Any, template: Path, folder: Path) -> None:
    rest = json.dumps({"format_version": 2, "files": tree}).encode()[1:]
    write(folder, template, metadata=checkpoint_files.first_line(rest) + rest)
    assert isinstance(load(folder), CheckpointError)


@cases(150)
@given(data=st.data())
def test_damaged_tensors_with_new_sums_are_loaded_or_refused(
    data: st.DataObject, template: Path, folder: Path
) -> None:
    name = data.draw(st.sampled_from([WEIGHTS_FILE, TRAINING_FILE]))
    damaged = data.draw(mutations((template / name).read_bytes()))
    write(folder, template, sign=True, **{name.partition(".")[0]: damaged})
    found = load(folder)
    if not isinstance(found, CheckpointError):
        answered(lambda: restore(*learner(), found.tensors, found.metadata["optimizer"]))


@cases(150)
@given(data=st.data())
def test_other_tensors_with_new_sums_are_used_or_refused(
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
    weights = {name.removeprefix(WEIGHTS): tensors[name] for name in tensors if name.startswith(WEIGHTS)}
    rest = {name: value for name, value in tensors.items() if not name.startswith(WEIGHTS)}
    write(folder, template, sign=True, weights=save(weights), training=save(rest))
    found = load(folder)
    if not isinstance(found, CheckpointError):
        model, optimizer = learner()
        if answered(lambda: restore(model, optimizer, found.tensors, found.metadata["optimizer"])) is None:
            optimizer.step()


@cases(150)
@given(data=st.data(), value=TREES)
def test_other_metadata_with_new_sums_are_used_or_refused(
    data: st.DataObject, value: Any, template: Path, folder: Path
) -> None:
    metadata = {**METADATA_OF_A_RUN, data.draw(st.sampled_from([*METADATA_OF_A_RUN, "new"])): value}
    write(folder, template, sign=True, metadata=json.dumps(metadata).encode())
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
