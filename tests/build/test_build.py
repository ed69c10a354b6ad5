"""From configuration to objects: schedules, plan, device, initial weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from metalearn.build.checks import folder_problems
from metalearn.build.device import build_device, default_threads, prepare_host
from metalearn.build.objects import build_algorithm, build_optimizer, build_schedule, build_source, plan_wish
from metalearn.config import compose as config
from metalearn.config.loader import Library
from metalearn.core import Algorithm, Source
from metalearn.data.images import count_problems, episode_shapes
from metalearn.engine.evaluate import draw_tasks
from metalearn.engine.executor import TaskPlan
from metalearn.errors import ConfigError

CPU = torch.device("cpu")


def compose(*overrides: str) -> dict[str, Any]:
    return config.compose(["data=sinusoid", *overrides])


def built(*overrides: str) -> tuple[dict[str, Any], Source, Algorithm]:
    cfg = compose(*overrides)
    source = build_source(cfg, CPU)
    return cfg, source, build_algorithm(cfg, source, CPU)


def factors(name: str, *steps: int, **dials: Any) -> list[float]:
    words = [f"optimizer.schedule.{key}={value}" for key, value in dials.items()]
    schedule = build_schedule(compose(f"optimizer/schedule={name}", "trainer.outer_steps=100", *words))
    return [schedule(step) for step in steps]


def test_schedules_against_hand_computed_factors() -> None:
    assert factors("constant", 0, 99) == [1.0, 1.0]
    assert factors("cosine", 0, 25, 50, 100, 200) == pytest.approx(
        [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, 0.0, 0.0]
    )
    assert factors("cosine", 50, 100, final=0.5) == pytest.approx([0.75, 0.5])
    assert factors("linear", 0, 25, 100, 101) == pytest.approx([1.0, 0.75, 0.0, 0.0])
    assert factors("step", 0, 9, 10, 25, every=10, gamma=0.5) == [1.0, 1.0, 0.5, 0.25]


def test_the_plan_is_the_algorithm_s_own_unless_the_device_says_otherwise() -> None:
    assert plan_wish(compose("device.chunk=7")).plan() == TaskPlan("vmap", 7)
    assert plan_wish(compose("device.plan=loop", "device.chunk=3")).plan() == TaskPlan("loop", 3)


@pytest.mark.parametrize(
    ("words", "group", "key", "value", "sentence"),
    [
        ([], "algo", "order", 3, "algo.order=3 is none of 1, 2"),
        (["algo=protonet"], "algo", "distance", "x", "algo.distance=x is none of euclidean, cosine"),
        (["algo=pixel_nn"], "algo", "distance", "x", "algo.distance=x is none of cosine, euclidean"),
        (["model=conv4"], "model", "downsample", "x", "model.downsample=x is none of stride, pool"),
        (["model=conv4"], "model", "readout", "x", "model.readout=x is none of mean, flatten"),
        (
            ["model=conv4"],
            "model",
            "norm_statistics",
            "x",
            "model.norm_statistics=x is none of transductive, support, support_and_one, running",
        ),
        ([], "data", "rotations", ["x"], "data.rotations[0]=x is none of train, val, test"),
        ([], "data", "rotations", [None], "data.rotations[0]=None is none of train, val, test"),
        ([], "data", "partition", "x", "data.partition=x is none of random"),
        (["data=omniglot"], "data", "partition", "x", "data.partition=x is none of vinyals, random"),
        (["data=omniglot"], "data", "resize", "x", "data.resize=x is none of nearest, area, lanczos"),
        (["data=image_folder"], "data", "resize", "x", "data.resize=x is none of nearest, area, lanczos"),
        (["data=image_folder"], "data", "channels", 2, "data.channels=2 is none of 1, 3"),
    ],
)
def test_what_no_range_has_judged_is_no_traceback(
    words: list[str], group: str, key: str, value: Any, sentence: str, tmp_path: Path
) -> None:
    """As in a user's YAML, whose class derives from one of ours and which has no ranges."""
    cfg = config.compose(["data=glyphs", f"data.cache_dir={tmp_path}", *words])
    cfg[group][key] = value
    with pytest.raises(ConfigError) as caught:
        build_algorithm(cfg, build_source(cfg, CPU), CPU)
    assert caught.value.problems == [sentence]


def test_device_names() -> None:
    assert build_device(compose("device=cpu")) == CPU
    with pytest.raises(ConfigError, match="device.name=gpu is none of auto, cpu, cuda, cuda:NUMBER"):
        build_device(compose("device.name=gpu"))


def test_an_absent_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert build_device(compose("device=auto")) == torch.device("cuda")
    with pytest.raises(ConfigError, match="device=cuda:1, but PyTorch finds 1 CUDA devices on this machine"):
        build_device(compose("device.name=cuda:1"))


def test_the_seed_alone_decides_the_initial_weights() -> None:
    first, again, other = (built(f"seed={seed}")[2].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_optimizer_takes_its_dials_and_is_fused() -> None:
    cfg, _, algorithm = built("optimizer=sgd", "optimizer.momentum=0.5", "optimizer.lr=2")
    optimizer = build_optimizer(cfg, algorithm)
    assert type(optimizer) is torch.optim.SGD
    assert {key: optimizer.defaults[key] for key in ("lr", "momentum", "fused")} == {
        "lr": 2.0,
        "momentum": 0.5,
        "fused": True,
    }


@pytest.mark.parametrize("name", Library().options("optimizer"))
def test_every_optimizer_yaml_builds(name: str) -> None:
    cfg, _, algorithm = built(f"optimizer={name}")
    assert build_optimizer(cfg, algorithm) is not None


def test_nothing_to_train_has_no_optimizer() -> None:
    cfg, _, algorithm = built()
    for parameter in algorithm.parameters():
        parameter.requires_grad_(False)
    assert build_optimizer(cfg, algorithm) is None


def test_what_the_constructors_refuse_is_a_configuration_error() -> None:
    cfg = config.compose(["data=sinusoid", "model=conv4"])
    with pytest.raises(ConfigError, match="model=conv4 needs images"):
        build_algorithm(cfg, build_source(cfg, CPU), CPU)


def test_a_method_that_refuses_several_splits_says_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Algorithm, spec: object) -> None:
        raise ValueError("not with these tasks; choose others")

    cfg = compose()
    source = build_source(cfg, CPU)
    monkeypatch.setattr("metalearn.algorithms.maml.MAML.check", refuse)
    with pytest.raises(ConfigError) as caught:
        build_algorithm(cfg, source, CPU)
    assert caught.value.problems == ["not with these tasks; choose others"]


def test_host_settings_are_set_in_full_and_not_inherited() -> None:
    before = torch.get_num_threads()
    try:
        prepare_host(compose("device.threads=1", "device.precision=float64"))
        assert (torch.get_num_threads(), torch.get_default_dtype()) == (1, torch.float64)
        prepare_host(compose())
        assert (torch.get_num_threads(), torch.get_default_dtype()) == (default_threads(), torch.float32)
    finally:
        torch.set_num_threads(before)


class TestFolders:
    def test_a_folder_that_can_be_made_is_fine_and_is_not_made(self, tmp_path: Path) -> None:
        assert folder_problems(tmp_path / "a" / "b") == []
        assert not (tmp_path / "a").exists()

    def test_a_path_below_a_file_is_refused_for_root_too(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        [sentence] = folder_problems(tmp_path / "file" / "run")
        assert (
            sentence
            == f"run_dir={tmp_path}/file/run cannot be written: {tmp_path}/file is not a folder; choose "
            "another run_dir"
        )

    def test_a_dangling_link_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        assert "is not a folder" in folder_problems(tmp_path / "link" / "run")[0]


def test_a_refusal_of_a_class_that_is_not_ours_names_the_group() -> None:
    cfg, _, algorithm = built("optimizer=sgd", "optimizer.nesterov=true")
    with pytest.raises(ConfigError, match=r"^optimizer: Nesterov momentum requires a momentum"):
        build_optimizer(cfg, algorithm)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can make a file")
def test_a_folder_that_takes_no_file_is_named() -> None:
    [problem] = folder_problems(Path("/proc/run"))
    assert problem.startswith("run_dir=/proc/run cannot be written: ")


def test_one_wrong_size_is_one_sentence_for_all_splits() -> None:
    shapes = episode_shapes(5, 10, 15, None)
    assert count_problems("toy", shapes, {"train": (9, 20), "val": (9, 20), "test": (9, 30)}) == [
        "data.shot=10 + data.query_shot=15 needs 25 images per class, but split 'train' of toy has a class "
        "with 20 "
        "and split 'val' of toy has a class with 20; lower data.shot or data.query_shot"
    ]


def test_an_algorithm_can_bring_groups_with_dials_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, _, algorithm = built("optimizer.lr=0.5")
    head = list(algorithm.head.parameters())
    groups = [{"params": list(algorithm.model.parameters())}, {"params": head, "lr": 0.1}]
    monkeypatch.setattr(algorithm, "parameter_groups", lambda: groups)
    optimizer = build_optimizer(cfg, algorithm)
    assert optimizer is not None
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert optimizer.param_groups[1]["params"] == head


@pytest.mark.parametrize("fault", ["left out", "twice", "foreign"])
def test_parameter_groups_hold_every_parameter_once(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, _, algorithm = built()
    body, head = list(algorithm.model.parameters()), list(algorithm.head.parameters())
    params = {
        "left out": body,
        "twice": [*body, *head, head[0]],
        "foreign": [*body, *head, torch.nn.Parameter(torch.ones(1))],
    }[fault]
    monkeypatch.setattr(algorithm, "parameter_groups", lambda: [{"params": params}])
    what = {
        "left out": "head.weight, head.bias",
        "twice": "head.weight",
        "foreign": "what is no parameter of it",
    }[fault]
    with pytest.raises(
        ConfigError,
        match=rf"MAML.parameter_groups\(\) must hold every trainable parameter in one group.*not so {what}$",
    ):
        build_optimizer(cfg, algorithm)


MIXED = """
from metalearn.core import Source


class Mixed(Source):
    name = "mixed"

    def __init__(self, *, device, parts, way_of={}):
        self.device, self.parts, self.inner = device, parts, way_of["inner"]

    def spec(self, split):
        return self.inner.spec(split)

    def tasks(self, split, **which):
        return self.inner.tasks(split, **which)

    def protocol(self, split):
        return {}

    def fingerprint(self):
        return ""
"""
SINE = {"_target_": "metalearn.data.sinusoid.Sinusoid", "shot": 2, "query_shot": 2}


def test_sources_within_a_source_compute_on_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mixed_sources.py").write_text(MIXED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose()
    cfg["trusted"] = ["mixed_sources"]
    sine = {**{key: value for key, value in cfg["data"].items() if key != "about"}, **SINE}
    cfg["data"] = {
        "_target_": "mixed_sources.Mixed",
        "parts": [sine, {**sine, "shot": 3}],
        "way_of": {"inner": sine},
    }
    device = torch.device("meta")
    source: Any = build_source(cfg, device)
    assert [part.device for part in (source, *source.parts, source.inner)] == [device] * 4
    assert [part.spec("train").support_size for part in source.parts] == [2, 3]
    assert "device" not in sine


def test_masks_count_where_only_those_who_are_judged_are_ragged() -> None:
    words = ["data=synthetic_ratings", "data.num_users=40", "data.num_items=30", "data.max_ratings=10"]
    even, ragged = (
        build_source(config.compose([*words, f"data.min_ratings={least}"]), CPU) for least in (10, 5)
    )
    cfg = config.compose([*words, "data.min_ratings=5", "algo.inner_lr=0.01"])
    assert not even.spec("train").ragged
    algorithm = build_algorithm(cfg, ragged, CPU, splits=("test",), trained=even.spec("train"))
    task = tree_map(lambda leaf: leaf[0], draw_tasks(algorithm, ragged, "test", seed=0, first=0, count=1))
    assert not task.support.mask.all()
    padding = ~task.support.mask[:, None]
    dirty = task._replace(support=task.support._replace(y=task.support.y.masked_fill(padding, 1e3)))
    clean, same = (
        algorithm.predict(algorithm.adapt(t, steps=1), t.query.x, t.query.mask) for t in (task, dirty)
    )
    assert torch.equal(clean, same), "padding was learned from"
