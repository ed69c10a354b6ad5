"""A record takes its own lines of a recipe's YAML, and no other byte changes."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.config import records
from metalearn.config.loader import packaged_folder, packaged_options
from metalearn.errors import ConfigError

RECIPES = {name: packaged_folder() / "experiment" / f"{name}.yaml" for name in packaged_options("experiment")}
RECORD: dict[str, Any] = {
    "seeds": [0, 1, 2],
    "steps": 10000,
    "minutes": 42.3,
    "date": "2026-11-27",
    "commit": "1234567890",  # must not become a number
    "machine": "A processor: @ 2 GHz, 'fast', torch 2.14.1+cpu",
    "plan": "plan=vmap chunk=16",
    "figures": {"5-way: 1-shot, #1": {"mean": 97.85, "ci95": 0.32, "std": None, "episodes": 2000}},
}
LINES = 10  # that RECORD takes


def is_of_measured(text: str) -> list[bool]:
    """Of every line, whether it belongs to about.measured, by its indentation alone."""
    inside, found = False, []
    for line in text.splitlines():
        if line.startswith("  measured:"):
            inside = True
        elif not line.startswith("    "):
            inside = False
        found.append(inside)
    return found


def outside(text: str) -> list[str]:
    marks = is_of_measured(text)
    return [line for line, ours in zip(text.splitlines(keepends=True), marks, strict=True) if not ours]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("tier", ["cpu", "paper", "smoke"])
def test_every_byte_of_our_recipes_but_the_record_stays(name: str, tier: str) -> None:
    before = RECIPES[name].read_bytes().decode()
    after = records.with_record(before, tier, RECORD)
    assert outside(after) == outside(before)
    old, new = (yaml.safe_load(text)["about"] for text in (before, after))
    kept = {other: record for other, record in old.get("measured", {}).items() if other != tier}
    assert {other: record for other, record in new["measured"].items() if other != tier} == kept
    assert new["measured"][tier] == yaml.safe_load(
        yaml.safe_dump(RECORD | {"date": new["measured"][tier]["date"]})
    )
    assert str(new["measured"][tier]["date"]) == RECORD["date"]
    assert records.with_record(after, tier, RECORD) == after


@pytest.mark.parametrize("name", RECIPES)
def test_without_any_record_it_comes_at_the_end_of_the_block(name: str) -> None:
    bare = "".join(outside(RECIPES[name].read_bytes().decode()))
    after = records.with_record(bare, "cpu", RECORD)
    assert "".join(outside(after)) == bare
    assert sum(is_of_measured(after)) == LINES + 1
    assert yaml.safe_load(after)["about"]["measured"]["cpu"]["commit"] == "1234567890"


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        ("about:\n  title: x # of mine\n", "\n# the rest\nseed: 1\n"),
        ("about:\n  deviation: >-\n    many words,\n    folded\n", "\n\nseed: 1\n"),
        ("about:\n  figures:\n  - {name: a}\n  - name: b\n    unit: mae\n", "seed: 1\n"),
        ("seed: 1\nabout:\n  title: x\n  ranges: {}\n", ""),
        ("about:\r\n  title: x\r\n", "seed: 1\r\n"),
        ("about:\r  title: x\r", "seed: 1\r"),
        ("about:\n  title: x \u2028  paper: y\n", "# the rest\nseed: 1\n"),
        ("about:\n  title: |\n    many\u2028    words\x85    folded\n", "\n# the rest\nseed: 1\n"),
        ("# of\r# me\x85about:\n  deviation: >-\n    many\r    words\n", "\n# the rest\nseed: 1\n"),
    ],
)
def test_comments_layout_and_line_ends_stay(head: str, tail: str) -> None:
    after = records.with_record(head + tail, "cpu", RECORD)
    assert after.startswith(head)
    assert after.endswith(tail)
    inserted = after[len(head) : len(after) - len(tail)]
    assert len(inserted.splitlines()) == LINES + 1
    assert ("\r\n" in inserted) == ("\r\n" in head)
    assert records.others(after, "cpu") == records.others(head + tail, "cpu")


def test_a_file_without_its_last_line_end_stays_one() -> None:
    after = records.with_record("about:\n  title: x", "cpu", {"seeds": [0]})
    assert after == f"about:\n  title: x\n  measured:{records.COMMENT}\n    cpu:\n      seeds: [0]"


def test_a_link_stays_a_link_and_the_file_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    path, link = tmp_path / "kept" / "mine.yaml", tmp_path / "mine.yaml"
    path.write_text("about:\n  title: x\n")
    path.chmod(0o664)
    link.symlink_to(path)
    records.require_writable(link)
    assert records.write(link, "cpu", RECORD)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    assert yaml.safe_load(path.read_text())["about"]["measured"]["cpu"]["seeds"] == [0, 1, 2]
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["kept", "mine.yaml", "mine.yaml"]


def test_records_that_are_written_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("about:\n  title: x\nseed: 1\n")
    tiers = [f"tier{number}" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:  # each with a lock of its own, as processes have
        assert all(pool.map(lambda tier: records.write(path, tier, RECORD), tiers))
    assert sorted(yaml.safe_load(path.read_text())["about"]["measured"]) == sorted(tiers)


def test_a_line_that_is_not_of_the_record_is_not_taken_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with the count of lines."""
    path = tmp_path / "mine.yaml"
    text = records.with_record("about:\n  title: x\n# mine\nseed: 1\n", "cpu", RECORD)
    path.write_text(text)
    right = records.replaced
    monkeypatch.setattr(records, "replaced", lambda text, first, end, new: right(text, first, end + 1, new))
    with pytest.raises(ConfigError, match="a byte of another line would change; write `about:` as a plain"):
        records.write(path, "cpu", {"seeds": [0]})
    assert path.read_text() == text


def test_an_older_record_of_another_length_goes_whole() -> None:
    long = records.with_record("about:\n  title: x\nseed: 1\n", "cpu", RECORD)
    both = records.with_record(long, "paper", {"seeds": [1]})
    short = records.with_record(both, "cpu", {"seeds": [0]})
    assert short == (
        f"about:\n  title: x\n  measured:{records.COMMENT}\n    cpu:\n      seeds: [0]\n    paper:\n"
        "      seeds: [1]\nseed: 1\n"
    )


@pytest.mark.parametrize(
    "text", ["seed: 1\n", "about: {title: x}\n", "about:\n", "about:\n  title: x\n  measured: {cpu: {}}\n"]
)
def test_what_has_no_place_for_a_record_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="mine.yaml: the record has no place: "):
        records.write(path, "cpu", RECORD)
    assert path.read_text() == text


def test_losses_come_back_to_the_last_bit() -> None:
    losses = {"small": [0.1 + 0.2, 1e-05, 123456789.123456789, 1e22]}
    text = records.with_record("about:\n  title: x\n", "smoke", {"losses": losses})
    assert yaml.safe_load(text)["about"]["measured"]["smoke"]["losses"] == losses


def test_a_read_only_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("about:\n  title: x\n")
    records.require_writable(path)
    path.chmod(0o444)
    with pytest.raises(ConfigError, match="cannot be written, and --record keeps its figures there; chmod"):
        records.require_writable(path)


def test_a_recipe_of_an_installed_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """site-packages/metalearn/conf, beside which there is no pyproject.toml."""
    path = tmp_path / "conf" / "experiment" / "maml.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("about:\n  title: x\n")
    monkeypatch.setattr(records, "packaged_folder", lambda: tmp_path / "conf")
    with pytest.raises(ConfigError, match="belongs to an installed metalearn; --record works in a checkout"):
        records.require_writable(path)


@pytest.mark.parametrize(
    ("mean", "ci95", "std", "expected"),
    [
        (97.84567, 0.3214, None, (97.85, 0.32, None)),
        (0.49312, 0.01523, 0.0021, (0.493, 0.015, 0.0021)),
        (43.5, 12.3, 1.26, (44.0, 12.0, 1.3)),
        (1.23456789, 0.0, None, (1.234568, 0.0, None)),
    ],
)
def test_figures_are_kept_to_two_digits_of_their_interval(
    mean: float, ci95: float, std: float | None, expected: tuple[float, float, float | None]
) -> None:
    assert tuple(records.rounded(mean, ci95, std).values()) == expected
