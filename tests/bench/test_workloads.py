"""What can be chosen, and that every choice is a configuration that `metalearn train` would take."""

from __future__ import annotations

import pytest

from metalearn.bench.workloads import WORKLOADS, Workload, choose, listing
from metalearn.config.compose import compose
from metalearn.errors import ConfigError

SIZES = {  # way, shot, query_shot, adaptation_steps, order
    "sinusoid": (None, 10, 10, 1, 2),
    "stride2_5w1s": (5, 1, 1, 1, 2),
    "maxpool_5w1s_15q": (5, 1, 15, 1, 2),
    "stride2_20w1s_5steps": (20, 1, 1, 5, 2),
    "anil": (5, 1, 1, 1, 2),
    "protonet": (20, 1, 5, None, None),
    "first_order_stride2_5w1s": (5, 1, 1, 1, 1),
    "first_order_maxpool_5w1s_15q": (5, 1, 15, 1, 1),
    "sampler_5w1s_15q": (5, 1, 15, 1, 2),
    "sampler_20w5s_15q": (20, 5, 15, 1, 2),
    "evaluation": (5, 1, 15, 1, 2),
}
MEASURED = [workload for workload in WORKLOADS if workload.kind != "scaling"]


def test_without_a_word_everything_is_chosen() -> None:
    assert choose([]) == list(WORKLOADS)


def test_a_group_stands_for_its_rows_and_the_order_is_that_of_the_list() -> None:
    assert [workload.name for workload in choose(["first_order", "anil"])] == [
        "anil",
        "first_order_stride2_5w1s",
        "first_order_maxpool_5w1s_15q",
    ]
    assert [workload.name for workload in choose(["sampler_20w5s_15q"])] == ["sampler_20w5s_15q"]


def test_every_unknown_word_has_a_sentence_with_the_closest_match() -> None:
    with pytest.raises(ConfigError) as caught:
        choose(["sinusiod", "anil", "xyzzy"])
    first, second = caught.value.problems
    assert first == "metalearn bench sinusiod: there is no such workload; did you mean sinusoid?"
    assert second.startswith(
        "metalearn bench xyzzy: there is no such workload; choose from sinusoid, stride2_5w1s,"
    )


def test_the_help_names_every_workload() -> None:
    assert all(workload.name in listing() and workload.title in listing() for workload in WORKLOADS)


@pytest.mark.parametrize("workload", MEASURED, ids=lambda workload: workload.name)
def test_a_workload_is_a_valid_configuration_with_the_sizes_of_its_title(workload: Workload) -> None:
    cfg = compose([*workload.overrides, "device=cpu", f"trainer.meta_batch_size={workload.tasks}"])
    data, algo = cfg["data"], cfg["algo"]
    sizes = (
        data.get("way"),
        data["shot"],
        data["query_shot"],
        algo.get("adaptation_steps"),
        algo.get("order"),
    )
    assert sizes == SIZES[workload.name]
    assert (cfg["device"]["name"], cfg["device"]["precision"]) == ("cpu", "float32")
