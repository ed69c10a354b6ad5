"""Few-shot classification of one's own images: a class is a folder, classes may differ in size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metalearn.core import Location, Split
from metalearn.data.cache import CACHE, cache_folder, cached, key_of
from metalearn.data.folder_files import ClassFolder, class_folders, find_root, read_images
from metalearn.data.image_classes import ImageClasses, ImageSet, count_problems
from metalearn.data.partition import file_partition, random_partition, split_sizes
from metalearn.data.resize import METHODS
from metalearn.data.sampling import SPLITS
from metalearn.errors import ConfigError, DataError

VERSION = 1  # of the preparation; part of the cache's name
NAMED = 5  # classes that a message names before it counts


class ImageFolder(ImageClasses):
    """root: `root/<class>/*.png|jpg|jpeg`, or `root/{train,val,test}/<class>/…`, whose splits then hold.

    partition: `random`, or a file that maps classes to splits. min_images: leave out classes with fewer images.
    The constructor lists the folders, since their counts decide whether the sizes can be had; it opens no image.
    """

    name = "image_folder"
    locations = (Location("root"), Location("partition", words=("random",)), CACHE)

    def __init__(
        self,
        *,
        device: torch.device,
        root: str | None = None,
        cache_dir: str | None = None,
        partition: str = "random",
        partition_seed: int = 0,
        fractions: Sequence[float] = (0.6, 0.2, 0.2),
        way: int = 5,
        shot: int = 1,
        query_shot: int = 15,
        train: Mapping[str, int | None] | None = None,
        min_images: int = 0,
        rotations: Sequence[Split] = (),
        resize: str = "area",
        invert: bool = False,
        image_size: int = 84,
        channels: int = 3,
    ) -> None:
        super().__init__(
            device=device,
            way=way,
            shot=shot,
            query_shot=query_shot,
            train=train,
            rotations=rotations,
            invert=invert,
            image_size=image_size,
            channels=channels,
        )
        self.cache = cache_folder(cache_dir)
        self.partition, self.partition_seed, self.fractions = partition, partition_seed, tuple(fractions)
        self.min_images, self.resize, self.channels = min_images, resize, channels
        self._check()
        self.root, self.folders, self.layout, self.split_classes = self._survey(root)

    def _check(self) -> None:
        problems = []
        if self.channels not in (1, 3):
            problems.append(f"data.channels={self.channels}; expected 1 (grey) or 3 (colour)")
        if self.resize not in METHODS:
            problems.append(f"data.resize={self.resize}; expected one of {', '.join(METHODS)}")
        if len(self.fractions) != 3 or min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            problems.append(f"data.fractions={list(self.fractions)}; expected three shares of train, val and test that add up to 1")
        if self.partition != "random" and Path(self.partition).suffix not in (".json", ".yaml", ".yml", ".csv"):
            problems.append(f"data.partition={self.partition}; expected random, or the path of a .json, .yaml or .csv file")
        if problems:
            raise ConfigError(problems)

    def _survey(self, root: str | None) -> tuple[Path, list[ClassFolder], str, dict[Split, list[int]]]:
        """Root, classes, how they are divided, and their numbers per split. Raises ConfigError for sizes that they cannot give."""
        path = find_root(root)
        folders = [folder for folder in class_folders(path) if len(folder.files) >= self.min_images]
        if not folders:
            raise DataError(f"data.root={path} has no class with data.min_images={self.min_images} images; lower data.min_images")
        names = [folder.name for folder in folders]
        if self.partition != "random":
            layout, partition = "file", file_partition(Path(self.partition).expanduser(), names)
        elif folders[0].split is not None:
            layout = "folders"
            partition = {split: [number for number, folder in enumerate(folders) if folder.split == split] for split in SPLITS}
        else:
            layout, partition = "random", random_partition(len(names), split_sizes(len(names), self.fractions), self.partition_seed)
        problems = self._size_problems(folders, partition) + self._way_problems(partition)
        if problems:
            raise ConfigError(problems)
        return path, folders, layout, partition

    def _load(self) -> ImageSet:
        files = [file for folder in self.folders for file in folder.files]
        names = [folder.name for folder in self.folders]
        size, channels, resize = self.input_spec.shape[-1], self.channels, self.resize
        key = key_of(version=VERSION, files=_listing(self.root, files), size=size, channels=channels, resize=resize)
        prepared = cached(
            self.cache,
            f"image_folder-{key}",
            lambda: ({"images": read_images(files, size=size, channels=channels, resize=resize)}, {"classes": names}),
        )
        return ImageSet(prepared.tensors["images"], [len(folder.files) for folder in self.folders], self.split_classes, prepared.sha256)

    def _size_problems(self, folders: Sequence[ClassFolder], partition: Mapping[Split, Sequence[int]]) -> list[str]:
        """Names of classes of which an episode could ask for more images than there are."""
        short, needed = [], 0
        for split, shape in self.shapes.items():
            needed = max(needed, shape.per_class)
            short += [f"{folders[n].name} ({len(folders[n].files)})" for n in partition[split] if len(folders[n].files) < shape.per_class]
        if not short:
            return []
        named = ", ".join(short[:NAMED]) + (f" and {len(short) - NAMED} more" if len(short) > NAMED else "")
        return [
            f"{len(short)} of {len(folders)} classes have fewer images than the {needed} of shot + query_shot: {named}. "
            f"Lower data.shot or data.query_shot, or leave these classes out with data.min_images={needed}"
        ]

    def _way_problems(self, partition: Mapping[Split, Sequence[int]]) -> list[str]:
        have = {split: (len(partition[split]) * self._turns(split), shape.per_class) for split, shape in self.shapes.items()}
        return count_problems(self.name, self.shapes, have)

    def _facts(self) -> dict[str, Any]:
        seed = {"partition_seed": self.partition_seed, "fractions": list(self.fractions)} if self.layout == "random" else {}
        return {"partition": self.layout, **seed, "resize": self.resize, "channels": self.channels, "min_images": self.min_images}


def _listing(root: Path, files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What tells one state of the folder from another without reading the images: path, bytes, time of change."""
    return [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
