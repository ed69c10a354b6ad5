"""Which keys make a run the run that it is, and which may change when it is resumed.

Free to change: `device.*` (bits may then differ), the logger, how long to train, where the data lie (their
sha256 guards what they are), and what is only looked at: logging, saving, what to keep, what a non-finite
loss does, and the final evaluation. Everything else is science: weights or recorded numbers follow from it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

from metalearn.errors import ConfigError, DataError

Places = Mapping[str, Any]  # `metalearn.core.Location` by dotted key, see `metalearn.build.places`
NOWHERE: Places = {}
FREE = (
    "run_dir",
    "trusted",
    "device",
    "logger",
    "choices",  # names, from which nothing follows
    "trainer.outer_steps",
    "trainer.checkpoint_every",
    "trainer.keep_last",
    "trainer.on_nan",
    "trainer.shutdown_timeout_s",
    "trainer.dry_run",
)
# Every key of `eval` stands in one of these two; one that is in neither is held to be science.
FREE_EVAL = (
    *("eval.episodes", "eval.split", "eval.checkpoint", "eval.chunk", "eval.predictions"),
    *("eval.tasks", "eval.anyway", "eval.seeds", "eval.ci_target", "eval.grid"),
)
VALIDATION = ("eval.val_episodes", "eval.seed", "eval.monitor")  # what weights and records follow from
# Keys whose values a saved run has under an older name.
RENAMED = {"eval.batch_size": "eval.chunk", "data.rotated_twins": "data.rotations_as"}
# Of those, by their present name, the words of today for the values of then.
REWORDED: dict[str, dict[Any, Any]] = {"data.rotations_as": {True: "classes", False: "tasks"}}
# Keys with another name now, which the command line answers.
MOVED = {
    **RENAMED,
    "algo.plan": "device.plan",
    "algo.chunk": "device.chunk",
    "algo.norm_statistics": "model.norm_statistics",
    "optimizer.schedule.name": "optimizer/schedule",
}
# Of an older run: what its method suits, from which nothing follows but defaults of other keys.
SUITS = ("plan", "chunk", "norm_statistics")
# Keys that a run may be older than, and the values that do what was done before there were any.
BEFORE: dict[str, Any] = {
    "logger._target_": "metalearn.loggers.Logger",  # there was no logger
    "trainer.keep_best": 1,  # the best checkpoint alone was kept
    "trainer.shutdown_timeout_s": 86_400,  # a process that hung was not ended; this is the longest wait
    "eval.chunk": None,  # no number depends on it
    "eval.predictions": False,  # no predictions were written
    "eval.tasks": None,  # tasks were drawn, new to the run, of one seed, and as many as were asked for
    "eval.anyway": False,
    "eval.seeds": 1,
    "eval.ci_target": None,
    "eval.grid": None,
    "eval.monitor": None,  # the primary metric chose the best checkpoint
    "device.deterministic": False,  # PyTorch's own choice of kernels
    "device.channels_last": False,  # PyTorch's own memory layout
}
# The same for keys that a class of ours has gained since it first ran: by its name, values of its keys.
GAINED: dict[str, dict[str, Any]] = {
    **{
        f"metalearn.data.{source}": {"rotations_as": "classes"}  # tasks could hold one class in two rotations
        for source in ("glyphs.Glyphs", "image_folder.ImageFolder", "omniglot.Omniglot")
    },
    **{
        f"metalearn.algorithms.{method}": {
            "proximal": 0.0,  # the inner loss was the support's alone
            "warmup_steps": 0,
            "inner_loss": "mean",
            "inner_optimizer": {
                "name": "sgd",
                "momentum": 0.9,
                "beta1": 0.9,
                "beta2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "clip": None,
                "anneal": "constant",
            },
        }
        for method in ("maml.MAML", "protomaml.ProtoMAML")
    },
    "metalearn.algorithms.reptile.Reptile": {"task_order": "together"},
}
# What the constructors of our classes filled in while they had defaults of their own, so that the YAML of a
# run could leave them out. Never to be changed: a default of today stands in its YAML.
CONSTRUCTED: dict[str, dict[str, Any]] = {
    "metalearn.algorithms.baseline.Baseline": {
        "inner_lr": 0.01,
        "momentum": 0.9,
        "dampening": 0.9,
        "weight_decay": 0.001,
        "inner_batch_size": 4,
        "eval_adaptation_steps": 100,
    },
    "metalearn.algorithms.maml.MAML": {"order": 2, "adapts": "all"},
    "metalearn.algorithms.pixel_nn.PixelNN": {"distance": "cosine"},
    "metalearn.algorithms.protonet.ProtoNet": {"distance": "euclidean", "scale": 10.0},
    "metalearn.models.conv4.Conv4": {
        "channels": 64,
        "downsample": "stride",
        "readout": "mean",
        "norm_statistics": "transductive",
        "init": "xavier",
        "head_init": "default",
    },
    "metalearn.models.mlp.MLP": {
        "hidden": [40, 40],
        "init": "truncated_normal",
        "head_init": "truncated_normal",
    },
    "metalearn.models.user_item.UserItem": {
        "embedding_dim": 32,
        "decision": [64, 64],
        "init": "xavier",
        "head_init": "default",
    },
    "metalearn.data.glyphs.Glyphs": {
        "cache_dir": None,
        "num_classes": 1200,
        "num_drawings": 20,
        "seed": 0,
        "partition": "random",
        "partition_seed": 0,
        "way": 5,
        "shot": 1,
        "query_shot": 15,
        "train": None,
        "rotations": [],
        "invert": True,
        "image_size": 28,
    },
    "metalearn.data.image_folder.ImageFolder": {
        "root": None,
        "cache_dir": None,
        "partition": "random",
        "partition_seed": 0,
        "fractions": [0.6, 0.2, 0.2],
        "way": 5,
        "shot": 1,
        "query_shot": 15,
        "train": None,
        "min_images": 0,
        "rotations": [],
        "resize": "area",
        "invert": False,
        "image_size": 84,
        "channels": 3,
    },
    "metalearn.data.omniglot.Omniglot": {
        "root": None,
        "cache_dir": None,
        "partition": "vinyals",
        "partition_seed": 0,
        "way": 5,
        "shot": 1,
        "query_shot": 15,
        "train": None,
        "rotations": ["train", "val", "test"],
        "resize": "nearest",
        "invert": True,
        "image_size": 28,
    },
    "metalearn.data.sinusoid.Sinusoid": {
        "shot": 10,
        "query_shot": 10,
        "train": None,
        "amplitude": [0.1, 5.0],
        "phase": [0.0, math.pi],
        "interval": [-5.0, 5.0],
    },
    "metalearn.data.synthetic_ratings.SyntheticRatings": {
        "num_users": 4000,
        "num_items": 500,
        "min_ratings": 5,
        "max_ratings": 40,
        "query_shot": 3,
        "seed": 0,
        "noise": 0.3,
    },
}
# A key of a group's `about:`, in a saved run alone: not all of its classes are known by name, so that what
# they may lack is filled in where they are resolved (`metalearn.build.instantiate`).
SAVED = "saved"
PROSE = ("about",)
METHOD = ("algo", "data", "model", "optimizer")  # what a run lacks here is never filled in


def science(cfg: dict[str, Any], places: Places = NOWHERE) -> dict[str, Any]:
    """{dotted key: value} of everything that a resumed run must share with its beginning."""
    moving = {key for key, value in _leaves(cfg) if key in places and places[key].holds(value)}
    return {key: value for key, value in _leaves(cfg) if key not in moving and not _is_free(key)}


def refuse_new_science(old: dict[str, Any], new: dict[str, Any], places: Places = NOWHERE) -> None:
    """Raise ConfigError with a diff if two results of `science` differ, but for a key of the trainer newer
    than `old`.

    Older runs hold the places of their data to be science, so that these are passed over here as well.
    """
    old, new = (with_new_names(without_suits(leaves)) for leaves in (old, new))
    newer = {key for key in new if key not in old and key.partition(".")[0] not in METHOD}
    newer |= {key for key, value in left_out(new).items() if key not in old and new.get(key) == value}
    moved = {key for key, place in places.items() if place.holds(old.get(key)) and place.holds(new.get(key))}
    changed = [key for key in sorted({*old, *new} - newer - moved) if old.get(key) != new.get(key)]
    if not changed:
        return
    diff = "\n".join(f"  {key}: {old.get(key)} -> {new.get(key)}" for key in changed)
    allowed = ", ".join(
        [
            *(f"{name}.*" if name == "device" else name for name in FREE[2:-1]),
            *FREE_EVAL,
            *places,
        ]
    )
    raise ConfigError(
        f"a resumed run must keep its method and data, but:\n{diff}\nStart a new run with metalearn train. "
        f"These may change: {allowed}"
    )


def gained(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key, what was done before the classes of a configuration had that key. leaves: its values."""
    return {
        key: value
        for group in METHOD
        for key, value in _leaves(GAINED.get(str(leaves.get(f"{group}._target_")), {}), f"{group}.")
    }


def earlier(target: str) -> dict[str, Any]:
    """What a class of this name did, by the keys that an older run's YAML may lack."""
    return copy.deepcopy({**CONSTRUCTED.get(target, {}), **GAINED.get(target, {})})


def left_out(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key, `earlier` of the classes of a configuration. leaves: its values."""
    return {
        key: value
        for group in METHOD
        for key, value in _leaves(earlier(str(leaves.get(f"{group}._target_"))), f"{group}.")
    }


def without_suits(leaves: dict[str, Any]) -> dict[str, Any]:
    """Keys and values without what an algorithm's YAML once said among its arguments."""
    return {key: value for key, value in leaves.items() if key not in {f"algo.{name}" for name in SUITS}}


def with_new_names(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values under the names and in the words of today."""
    return dict(new_name(key, value) for key, value in leaves.items())


def new_name(key: str, value: Any) -> tuple[str, Any]:
    new = RENAMED.get(key, key)
    return new, value if new == key else REWORDED.get(new, {}).get(value, value)


def first_name(key: str, value: Any) -> tuple[str, Any]:
    """A key and its value as the first runs had them."""
    first = {new: old for old, new in RENAMED.items()}.get(key, key)
    words = {word: old for old, word in REWORDED.get(key, {}).items()}
    return first, words.get(value, value) if words else value


def as_today(saved: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which what the method suits stands in `algo.about`, as in the YAMLs of today."""
    algo = saved.get("algo")
    if not isinstance(algo, dict) or algo.keys().isdisjoint(SUITS):
        return saved
    said = algo.get("about")
    about = said if isinstance(said, dict) else {}
    suits = {key: algo[key] for key in SUITS if key in algo}
    rest = {key: value for key, value in algo.items() if key not in SUITS and key != "about"}
    return {**saved, "algo": {"about": {**about, "suits": suits}, **rest}}


def refuse_other_data(trained_on: str, found: str) -> None:
    """Raise DataError if two sha256 of a run's data differ, as they were when it began and as they are
    now.
    """
    if trained_on != found:
        then_and_now = f"sha256 {found[:12]}…, was {trained_on[:12]}…"
        raise DataError(
            f"the data is not what this run was trained on ({then_and_now}); restore it, or start a new run"
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if key in PROSE:
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in (*FREE, *FREE_EVAL))
