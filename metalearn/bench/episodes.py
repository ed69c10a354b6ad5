"""Drawing episodes with their pixels: our batched draw, a loop of a few tensor operations, and learn2learn's
loader.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.bench.case import Case, Options, StepTimes, Verdict, Work, configure
from metalearn.bench.workloads import Workload
from metalearn.core import TaskBatch

Episode = tuple[Tensor, Tensor, Tensor, Tensor]  # support images and labels, query images and labels
AUDITED = 4  # episodes of a result that are looked through
NO_EPISODES = "it draws no episodes"

# W ways, K shots of support and query together, N images, C classes


class Drawings:
    """All training images of a source, sorted by class: uint8 (N, 1, H, H), the same number of each class."""

    def __init__(self, source: Any, per_class: int) -> None:
        self.num_classes = source.spec("train").num_train_classes
        # one pass holds each image once
        everything = source.examples(seed=0, first=0, count=self.num_classes * per_class)
        order = everything.y.argsort()
        self.per_class, self.labels = per_class, everything.y[order]
        self.images = (everything.x[order] * 255).round().to(torch.uint8)

    def class_of(self) -> dict[bytes, int]:
        return {
            row.numpy().tobytes(): int(label)
            for row, label in zip(self.images.cpu(), self.labels, strict=True)
        }


def sampler_case(workload: Workload, options: Options) -> Case:
    """Episodes as tensors of pixels in [0, 1] with labels; those of a peer are others than ours, so that they
    are audited, not compared.
    """
    cfg, source, _ = configure(workload, options)
    data = cfg["data"]
    drawings = Drawings(source, data["num_drawings"])
    sizes = (data["way"], data["shot"], data["query_shot"])
    class_of = drawings.class_of()
    work = partial(source.tasks, "train", seed=0, first=0, count=workload.tasks)

    def split(name: str) -> StepTimes:
        def step() -> dict[str, float]:
            start = time.perf_counter()
            work()
            return {"data": time.perf_counter() - start}

        return step

    return Case(
        tasks=workload.tasks,
        check=lambda result: audit(result, class_of, *sizes),
        plans={"batched draw": lambda: work},
        peers={
            "plain": partial(plain, drawings, workload.tasks, *sizes),
            "learn2learn": partial(learn2learn, drawings, workload.tasks, *sizes),
        },
        absent=dict.fromkeys(("higher", "torchopt"), NO_EPISODES),
        split=split,
    )


def plain(drawings: Drawings, tasks: int, way: int, shot: int, query_shot: int) -> Work:
    device = drawings.images.device
    labels = torch.arange(way, device=device)
    support_y, query_y = labels.repeat_interleave(shot), labels.repeat_interleave(query_shot)

    def episode() -> Episode:
        classes_W = torch.randperm(drawings.num_classes, device=device)[:way]
        chosen_WK = torch.rand(way, drawings.per_class, device=device).argsort(1)[:, : shot + query_shot]
        pixels = drawings.images[classes_W[:, None] * drawings.per_class + chosen_WK] / 255.0
        return pixels[:, :shot].flatten(0, 1), support_y, pixels[:, shot:].flatten(0, 1), query_y

    return lambda: [episode() for _ in range(tasks)]


def learn2learn(drawings: Drawings, tasks: int, way: int, shot: int, query_shot: int) -> Work:
    import learn2learn

    per_class = shot + query_shot
    dataset = learn2learn.data.MetaDataset(torch.utils.data.TensorDataset(drawings.images, drawings.labels))
    transforms = learn2learn.data.transforms
    loader = learn2learn.data.TaskDataset(
        dataset,
        task_transforms=[
            transforms.FusedNWaysKShots(dataset, n=way, k=per_class),
            transforms.LoadData(dataset),
            transforms.RemapLabels(dataset),
            transforms.ConsecutiveLabels(dataset),
        ],
    )
    in_support = torch.arange(way * per_class, device=drawings.images.device) % per_class < shot

    def episode() -> Episode:
        images, labels = loader.sample()
        order = labels.argsort(stable=True)
        pixels, labels = images[order] / 255.0, labels[order]
        return pixels[in_support], labels[in_support], pixels[~in_support], labels[~in_support]

    return lambda: [episode() for _ in range(tasks)]


def audit(
    result: TaskBatch | Sequence[Episode], class_of: dict[bytes, int], way: int, shot: int, query_shot: int
) -> Verdict:
    """Whether episodes are what they claim: sizes, one class per label, classes and images not twice, pixels
    in [0, 1].
    """
    for number in range(AUDITED):
        given = result[number] if isinstance(result, list) else one_of(result, number)
        episode = (given[0].cpu(), given[1].cpu(), given[2].cpu(), given[3].cpu())
        problem = fault_of(episode, class_of, way, shot, query_shot)
        if problem:
            return Verdict(f"its episode {number} has {problem}")
    return Verdict(None)


def one_of(batch: Any, number: int) -> Episode:
    return batch.support.x[number], batch.support.y[number], batch.query.x[number], batch.query.y[number]


def fault_of(
    episode: Episode, class_of: dict[bytes, int], way: int, shot: int, query_shot: int
) -> str | None:
    images, labels = torch.cat([episode[0], episode[2]]), torch.cat([episode[1], episode[3]])
    if images.dtype != torch.float32 or images.min() < 0 or images.max() > 1:
        return (
            f"pixels from {float(images.min())} to {float(images.max())} in {images.dtype}; expected "
            "float32 in 0 … 1"
        )
    for y, each in ((episode[1], shot), (episode[3], query_shot)):
        if y.bincount(minlength=way).tolist() != [each] * way:
            return f"{y.bincount(minlength=way).tolist()} images per label; expected {each} of each of {way}"
    rows = [row.numpy().tobytes() for row in (images * 255).round().to(torch.uint8)]
    if len(set(rows)) < len(rows):
        return "an image twice"
    pairs = {(class_of.get(row), int(label)) for row, label in zip(rows, labels, strict=True)}
    if (
        len(pairs) != way
        or len({found for found, _ in pairs}) != way
        or None in {found for found, _ in pairs}
    ):
        return "images of another class under a label"
    return None
