"""Samplers draw other episodes than ours, so that each episode is looked through instead: planted faults must
be seen.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.bench.case import Case
from metalearn.bench.episodes import Episode, fault_of
from metalearn.bench.runner import enter

from .tiny import FAST, case_of


@pytest.fixture(scope="module")
def case(cache: Path) -> Case:
    return case_of("sampler_5w1s_15q", cache)


def test_our_draw_and_every_loader_give_sound_episodes(case: Case) -> None:
    found = enter(case, FAST)
    wanted = {"batched draw", "plain", *(["learn2learn"] if find_spec("learn2learn") else [])}
    assert set(found.works) == wanted, found.refused
    assert found.refused["higher"] == "it draws no episodes"


def episodes(case: Case) -> list[Episode]:
    drawn: list[Episode] = case.peers["plain"]()()
    return drawn


def swap_labels(episode: Episode) -> Any:
    labels = episode[3].clone()
    labels[0], labels[-1] = labels[-1].clone(), labels[0].clone()
    return (*episode[:3], labels)


def show_an_answer(episode: Episode) -> Any:
    images = episode[2].clone()
    images[0] = episode[0][0]
    return (episode[0], episode[1], images, episode[3])


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (swap_labels, "its episode 1 has images of another class under a label"),
        (show_an_answer, "its episode 1 has an image twice"),
        (
            lambda e: (e[0] * 255, *e[1:]),
            "its episode 1 has pixels from 0.0 to 255.0 in torch.float32; expected float32 in 0 … 1",
        ),
        (
            lambda e: (e[0].double(), *e[1:]),
            "its episode 1 has pixels from 0.0 to 1.0 in torch.float64; expected float32 in 0 … 1",
        ),
        (
            lambda e: (e[0], e[1] * 0, *e[2:]),
            "its episode 1 has [5, 0, 0, 0, 0] images per label; expected 1 of each of 5",
        ),
        (lambda e: (*e[:2], e[2].flip(-1), e[3]), "its episode 1 has images of another class under a label"),
    ],
)
def test_a_fault_is_named(case: Case, fault: Any, sentence: str) -> None:
    drawn = episodes(case)
    drawn[1] = fault(drawn[1])
    assert case.check(drawn).problem == sentence


def test_two_labels_for_one_class_are_seen() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1) / 255
    class_of = {row.to(torch.uint8).numpy().tobytes(): 7 for row in images * 255}
    labels = torch.tensor([0, 1])
    assert (
        fault_of((images[:2], labels, images[2:], labels), class_of, 2, 1, 1)
        == "images of another class under a label"
    )
