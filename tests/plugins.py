"""Methods and sources as their YAMLs name them, made small: nothing here knows one of them by name.

What a method or source is made small by stands in its YAML, as `about.test`. YAMLs in
$METALEARN_CONFIG_DIR are taken in like ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metalearn.build.instantiate import construct, resolve
from metalearn.build.objects import build_algorithm, build_source
from metalearn.config.compose import compose
from metalearn.config.loader import Library
from metalearn.config.schema import lookup
from metalearn.core import Algorithm, InputSpec, Kind, Source
from metalearn.engine.fitting import obstacles
from metalearn.errors import ConfigError
from metalearn.models.base import Model, Norm, Statistics, initialise
from metalearn.models.context import film, unmoved
from metalearn.models.convolution import normalised
from metalearn.testing.algorithms import refused_as_declared
from tests.in_memory import InMemory

CPU = torch.device("cpu")
LIBRARY = Library()
METHODS = [name for name in LIBRARY.options("algo") if not name.startswith("_")]
SOURCES = [name for name in LIBRARY.options("data") if not name.startswith("_")]
# What composes the model that fits tasks of a kind; the tasks themselves are those of `InMemory`.
WORDS: dict[Kind, list[str]] = {
    "classification": ["data=glyphs", "model.channels=8"],
    "regression": ["data=sinusoid", "model.hidden=[8]"],
    "rating": ["data=synthetic_ratings", "model.embedding_dim=4", "model.decision=[8]"],
}


@cache
def class_of(method: str) -> type[Algorithm]:
    cls: type[Algorithm] = resolve("algo._target_", LIBRARY.read("algo", method)["_target_"], Algorithm, [])
    return cls


# (method, kind) of all that is declared.
PAIRS: list[tuple[str, Kind]] = [(method, kind) for method in METHODS for kind in class_of(method).kinds]


def small(group: str, name: str, **places: object) -> list[str]:
    """Overrides from `about.test` of a YAML, whose dotted keys are those of other groups.

    places: what stands for {images}, a folder of images.
    """
    dials = (LIBRARY.read(group, name).get("about") or {}).get("test") or {}
    own = {key: value for key, value in dials.items() if "." not in key}
    words = [f"{group}.{key}={json.dumps(value).format(**places)}" for key, value in flat(own)]
    return words + [f"{key}={json.dumps(dials[key])}" for key in dials if "." in key]


def flat(dials: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in dials.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@cache
def in_memory(method: str, kind: Kind) -> tuple[Algorithm, Source]:
    """The method on tasks of a kind, ragged ones where these are users and the method takes them."""
    source = InMemory(kind, ragged=kind == "rating" and class_of(method).handles_ragged)
    return build_algorithm(configuration(method, kind), source, CPU), source


@cache
def configuration(method: str, kind: Kind) -> dict[str, Any]:
    return composed(method, ["device=cpu", *WORDS[kind]])


def composed(method: str, words: list[str]) -> dict[str, Any]:
    """The method among these words, made small by what its `about.test` says of keys that they have."""
    words = [f"algo={method}", *words]
    plain = compose(words)  # a model without norms has no dial for them
    return compose([*words, *(w for w in small("algo", method) if lookup(plain, w.partition("=")[0])[0])])


def two_layers(method: str) -> tuple[Algorithm, Source]:
    """The method with a network of two layers, which the compiler goes through in a second or two."""
    kinds = class_of(method).kinds
    kind: Kind = "classification" if "classification" in kinds else kinds[0]
    if kind != "classification":
        return in_memory(method, kind)
    cfg, source = configuration(method, kind), InMemory(kind)
    torch.manual_seed(0)
    model = TwoLayers(InMemory(kind).spec("train").input_spec, cfg["model"]["norm_statistics"])
    algorithm: Algorithm = construct(cfg, "algo", model=model, spec=source.spec("train"))
    return algorithm, source


class TwoLayers(Model):
    """A convolution with its norm; the head is the second layer."""

    def __init__(self, input_spec: InputSpec, norm_statistics: str) -> None:
        super().__init__(init="xavier", head_init="default")
        self.norm_statistics, self.out_features = norm_statistics, 8
        self.conv = nn.Conv2d(input_spec.shape[0], 8, 3, stride=2, padding=1, bias=False)
        self.norm = Norm(8)
        initialise(self, "xavier")
        self.film: nn.Linear | None = None
        self.register_parameter("context", None)

    def add_context(self, num_context: int) -> None:
        self.film, self.context = nn.Linear(num_context, 16), unmoved(num_context)

    def forward(
        self, x: Tensor, given: Statistics | None = None, mask: Tensor | None = None, step: int | Tensor = 0
    ) -> tuple[Tensor, Statistics]:
        x, used = normalised(self.conv, self.norm, x, given[0] if given else None, mask, step)
        return torch.relu(film(x, self.film, self.context)).mean((-2, -1)), (used,)


@cache
def images(root: Path) -> Path:
    """A folder of 16 classes with 8 drawings each."""
    rng = np.random.default_rng(0)
    for number in range(16):
        (root / f"class_{number:02}").mkdir(parents=True)
        template = rng.integers(0, 256, (20, 20))
        for drawing in range(8):
            noisy = np.clip(template + rng.normal(0, 20, (20, 20)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / f"class_{number:02}" / f"{drawing}.png")
    return root


def data_words(data: str, folder: Path) -> list[str]:
    """What makes a source small, with its caches below the folder."""
    node = LIBRARY.read("data", data)
    cached = [f"data.cache_dir={folder / 'cache'}"] if "cache_dir" in node else []
    return [f"data={data}", "device=cpu", *small("data", data, images=images(folder / "images")), *cached]


def missing(data: str) -> str | None:
    """Why a source cannot be tried here: what `root: null` stands for is not there."""
    here = "root" not in LIBRARY.read("data", data) or any(
        word.startswith("data.root=") for word in small("data", data, images="")
    )
    return None if here or os.environ.get("METALEARN_DATA") else f"data={data}: set METALEARN_DATA"


@cache
def source_of(data: str, folder: Path) -> Source:
    return build_source(compose(data_words(data, folder)), CPU)


@cache
def alike_source(data: str, folder: Path, alike: tuple[str, ...]) -> Source:
    return build_source(compose([*data_words(data, folder), *alike]), CPU)


@cache
def on_source(method: str, data: str, folder: Path) -> tuple[Algorithm, Source] | str:
    """The pair, or the refusal that the method declares; ContractError for one that it does not."""
    source = source_of(data, folder)
    model = ["model.channels=8"] if source.spec("train").kind == "classification" else []
    # The tasks of training as those of the other splits: many methods are bound to one way.
    alike = [f"data.train.{size}=null" for size in LIBRARY.read("data", data).get("train") or ()]
    words = [*data_words(data, folder), *alike, *model]
    return built(composed(method, words), method, alike_source(data, folder, tuple(alike)))


def built(cfg: dict[str, Any], method: str, source: Source) -> tuple[Algorithm, Source] | str:
    try:
        return build_algorithm(cfg, source, CPU), source
    except ConfigError as refusal:
        return refused_as_declared(class_of(method), source, str(refusal))


def cheap(source: Source) -> str:
    """The method that a source is tried with: the fewest steps of those that learn from its tasks."""
    fitting = [
        name
        for name in METHODS
        if class_of(name).trains_on == "tasks" and not obstacles(class_of(name), source.spec("train"))
    ]
    return min(fitting, key=lambda name: (LIBRARY.read("algo", name).get("adaptation_steps", 0), name))
