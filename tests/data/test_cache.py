from __future__ import annotations

import logging
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metalearn.data.files.cache import cached, digest, key_of
from metalearn.errors import ConfigError
from metalearn.files import cache_folder


def built() -> tuple[dict[str, Tensor], dict[str, object]]:
    return {"images": torch.arange(5000, dtype=torch.uint8)}, {"classes": ["a", "b"]}


def refused() -> tuple[dict[str, Tensor], dict[str, object]]:
    raise AssertionError("built although the cache was valid")


def slowly_built() -> tuple[dict[str, Tensor], dict[str, object]]:
    time.sleep(0.3)
    return built()


def test_a_second_use_reads_what_the_first_one_built(tmp_path: Path) -> None:
    first = cached(tmp_path / "new" / "folder", "name", built)
    second = cached(tmp_path / "new" / "folder", "name", refused)
    assert torch.equal(first.tensors["images"], second.tensors["images"])
    assert (first.facts, first.sha256) == (second.facts, second.sha256)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["name.safetensors"]


@pytest.mark.parametrize("fault", ["flipped bit", "truncated", "empty", "not a cache"])
def test_a_corrupt_cache_is_named_and_built_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    good = cached(tmp_path, "name", built)
    path = tmp_path / "name.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    faults = {
        "flipped bit": bytes(content),
        "truncated": bytes(content[:-50]),
        "empty": b"",
        "not a cache": b"hello" * 100,
    }
    path.write_bytes(faults[fault])
    with caplog.at_level(logging.WARNING):
        again = cached(tmp_path, "name", built)
    assert f"{path} is corrupt" in caplog.text
    assert torch.equal(again.tensors["images"], good.tensors["images"])
    assert cached(tmp_path, "name", refused).sha256 == good.sha256


def test_processes_that_build_at_once_all_get_the_whole_content(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap(cached_sha256, [(tmp_path,)] * 3)
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["name.safetensors"]


def cached_sha256(folder: Path) -> str:
    return cached(folder, "name", slowly_built).sha256


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        cached(tmp_path, "name", refused)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_stops_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError,
        match=r"data\.cache_dir=.*file.* cannot be written .* choose another folder with "
        r"data\.cache_dir=PATH",
    ):
        cached(tmp_path / "file", "name", refused)


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "metalearn"
    assert cache_folder(str(tmp_path / "own")) == tmp_path / "own"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder(None) == Path.home() / ".cache" / "metalearn"


def test_the_digest_sees_values_types_shapes_and_facts() -> None:
    x = torch.arange(6)
    variants = [
        digest({"x": x}, {}),
        digest({"y": x}, {}),
        digest({"x": x + 1}, {}),
        digest({"x": x.reshape(2, 3)}, {}),
        digest({"x": x.to(torch.int32)}, {}),
        digest({"x": x}, {"a": 1}),
    ]
    assert len(set(variants)) == len(variants)
    assert key_of(a=1, b=2) == key_of(b=2, a=1) != key_of(a=2, b=1)
