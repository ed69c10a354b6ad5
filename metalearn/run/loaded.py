"""A trained run in Python: adapt to a handful of labelled examples of one's own, then predict.

    learner = metalearn.load("outputs/maml_glyphs/…")
    adapted = learner.adapt(["a1.png", "b1.png"], ["alpha", "beta"])
    adapted.predict(["x.png"])           # ["beta"]

Predictions are inductive: no input of `predict` influences another, whatever protocol the run was judged by.
Shape letters: S support rows, Q query rows, W ways, O outputs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metalearn import build, config
from metalearn.core import Algorithm, Examples, Inputs, InputSpec, Task, blank_query
from metalearn.engine.checkpoint import CheckpointStore
from metalearn.engine.evaluate import frozen
from metalearn.engine.results import choose
from metalearn.engine.state import load_weights
from metalearn.errors import ConfigError, DataError
from metalearn.hashing import draw, fold
from metalearn.run.folder import read_config

Picture = str | Path | Image.Image | np.ndarray | Tensor
FILTERS = {"nearest": Image.Resampling.NEAREST, "area": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}


def load(run_dir: str | Path, *, checkpoint: str = "best", trusted: Sequence[str] = ()) -> Loaded:
    """The algorithm of a run with the weights that validation chose (checkpoint: best, last or step-NUMBER).

    trusted: packages of one's own whose classes the run names. Raises ConfigError for a folder that is no run,
    CheckpointError for weights that are not as saved, DataError when the run's data is not on this machine.
    """
    run_dir = Path(run_dir)
    words = [f"trusted=[{','.join(trusted)}]"] if trusted else []
    cfg = config.reopen(read_config(run_dir), words)
    device = build.build_device(cfg)
    store = CheckpointStore(run_dir)
    algorithm = build.build_algorithm(cfg, build.build_source(cfg, device), device)
    _, step = choose(store, checkpoint)
    load_weights(algorithm, store.load(step).tensors)
    return Loaded(algorithm.eval(), Preprocessing.of(cfg, algorithm), device)


@dataclass(frozen=True)
class Preprocessing:
    """What the run's data did to an image; shape is (C, H, W), or None where inputs are no images."""

    shape: tuple[int, int, int] | None
    resize: str
    invert: bool

    @staticmethod
    def of(cfg: dict[str, Any], algorithm: Algorithm) -> Preprocessing:
        spec, data = algorithm.spec.input_spec, cfg["data"]
        is_image = isinstance(spec, InputSpec) and len(spec.shape) == 3
        shape = (spec.shape[0], spec.shape[1], spec.shape[2]) if is_image and isinstance(spec, InputSpec) else None
        return Preprocessing(shape, data.get("resize", "area"), bool(data.get("invert", False)))

    def __call__(self, inputs: Any) -> Inputs:
        """Model inputs (n, …) from a batch as a person has it.

        Images: paths, PIL images or uint8 arrays (h, w) or (h, w, 3), resized and scaled as the run's own data.
        Floating-point tensors and mappings of tensors are taken to be model inputs already.
        """
        if isinstance(inputs, dict):
            return {name: torch.as_tensor(value) for name, value in inputs.items()}
        if torch.is_tensor(inputs) and inputs.is_floating_point():
            return inputs.to(torch.get_default_dtype())
        if self.shape is None:
            return torch.as_tensor(np.asarray(inputs), dtype=torch.get_default_dtype())
        if isinstance(inputs, str | Path | Image.Image):
            raise ConfigError("a list of images is wanted, this is a single one; put it in brackets")
        return torch.stack([self.image(picture) for picture in inputs])

    def image(self, picture: Picture) -> Tensor:
        """One image as float (C, H, W) in [0, 1]."""
        assert self.shape is not None
        channels, height, width = self.shape
        if torch.is_tensor(picture) and picture.is_floating_point():
            return picture.to(torch.get_default_dtype()).reshape(self.shape)
        plain = _opened(picture).convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(plain.resize((width, height), FILTERS[self.resize])).reshape(height, width, channels)
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255.0
        return 1 - x if self.invert else x


class Loaded:
    """A learner with its weights and its preprocessing; `adapt` leaves it as it is, so one learner serves many tasks."""

    def __init__(self, algorithm: Algorithm, prepare: Preprocessing, device: torch.device) -> None:
        self.algorithm, self.prepare, self.device = algorithm, prepare, device

    def adapt(self, support_inputs: Any, labels: Sequence[Any], *, steps: int | None = None) -> Adapted:
        """Learn from a support set. labels: one per input, any hashable values; numbers (S,) or (S, O) for regression.

        steps: adaptation steps, by default the method's own for evaluation. Raises ConfigError, with the reason, if
        the method cannot take as many classes.
        """
        x = self._moved(self.prepare(support_inputs))
        count = len(next(iter(x.values())) if isinstance(x, dict) else x)
        if count != len(labels) or count == 0:
            raise ConfigError(f"{count} inputs and {len(labels)} labels; give one label for each input, and at least one")
        classes = list(dict.fromkeys(labels)) if self.algorithm.spec.kind == "classification" else None
        spec = replace(self.algorithm.spec, support_size=count, query_size=count)
        if classes is not None:
            spec = replace(spec, num_outputs=len(classes), max_way=len(classes))
        try:
            self.algorithm.check(spec)
        except ValueError as error:
            raise ConfigError(f"the support holds {len(classes or labels)} different labels: {error}") from error
        support = Examples(x, self._targets(labels, classes), torch.ones(count, dtype=torch.bool, device=self.device))
        key = fold(0, device=self.device)
        # The queries are not known yet; the support stands in for methods that look at query inputs while they adapt.
        task = blank_query(Task(support, support, key, draw(key[None], self.algorithm.draws(spec))))
        task = task._replace(draws={name: value[0] for name, value in task.draws.items()})
        with frozen(self.algorithm), torch.no_grad():
            steps = self.algorithm.eval_adaptation_steps if steps is None else steps
            learned = self.algorithm.inductive(self.algorithm.adapt(task, steps=steps), task)
        return Adapted(self, learned, classes)

    def _targets(self, labels: Sequence[Any], classes: list[Hashable] | None) -> Tensor:
        if classes is not None:
            return torch.tensor([classes.index(label) for label in labels], device=self.device)
        y = torch.as_tensor(np.asarray(labels), dtype=torch.get_default_dtype(), device=self.device)
        return y.reshape(len(labels), self.algorithm.spec.num_outputs)

    def _moved(self, x: Inputs) -> Inputs:
        return {name: value.to(self.device) for name, value in x.items()} if isinstance(x, dict) else x.to(self.device)


class Adapted:
    """A learner after one support set. classes: labels in the order of `predict_proba`'s columns; None for regression."""

    def __init__(self, learner: Loaded, learned: Any, classes: list[Any] | None) -> None:
        self.learner, self.learned, self.classes = learner, learned, classes

    def predict(self, inputs: Any) -> Any:
        """The label of each input, as a list; for regression a tensor (Q, O)."""
        scores = self._scores(inputs)
        return scores if self.classes is None else [self.classes[i] for i in scores.argmax(-1).tolist()]

    def predict_proba(self, inputs: Any) -> Tensor:
        """Softmax over the support's classes, (Q, W), columns as in `classes`."""
        if self.classes is None:
            raise ConfigError("predict_proba needs classes, but this run predicts numbers; use predict")
        return self._scores(inputs).softmax(-1)

    def _scores(self, inputs: Any) -> Tensor:
        x = self.learner._moved(self.learner.prepare(inputs))
        count = len(next(iter(x.values())) if isinstance(x, dict) else x)
        mask = torch.ones(count, dtype=torch.bool, device=self.learner.device)
        with frozen(self.learner.algorithm), torch.no_grad():
            scores: Tensor = self.learner.algorithm.predict(self.learned, x, mask)
        return (scores if self.classes is None else scores[:, : len(self.classes)]).cpu()


def _opened(picture: Picture) -> Image.Image:
    """Eight bits per channel, without transparency, which is laid on white as a viewer would show it."""
    if isinstance(picture, str | Path):
        try:
            picture = Image.open(picture)
            picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"not a readable image: {error}") from error
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(np.asarray(picture))
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture
