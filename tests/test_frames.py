"""The way from a command to the method stays short, and the rooms of the package few and apart."""

from __future__ import annotations

import pytest

from tests.frames import Stack, changes_of_file, rooms, stacks

MOST_ROOMS, MOST_IMPORTS = 27, 99
# (frames, changes of file); before the shell was redesigned they were (24, 11), (23, 11) and (15, 10)
MOST = {"rehearsal": (18, 10), "step": (16, 9), "eval": (13, 9)}


@pytest.fixture(scope="module")
def found() -> dict[str, Stack]:
    return stacks()


@pytest.mark.parametrize("name", MOST)
def test_few_frames_and_files_lie_between_the_command_and_the_method(
    name: str, found: dict[str, Stack]
) -> None:
    frames, changes = MOST[name]
    assert len(found[name]) <= frames, found[name]
    assert changes_of_file(found[name]) <= changes, found[name]


def test_a_run_is_one_frame_on_the_way_to_the_method(found: dict[str, Stack]) -> None:
    for name in ("rehearsal", "step"):
        assert sum(file.endswith("run/session.py") for file, _ in found[name]) == 1, found[name]


def test_rooms_and_the_imports_between_them_are_few() -> None:
    graph = rooms()
    assert len(graph) <= MOST_ROOMS, sorted(graph)
    assert sum(map(len, graph.values())) <= MOST_IMPORTS, graph
