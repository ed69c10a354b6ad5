"""Few-shot classification of one's own images: a class is a folder, classes may differ in size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.core import SPLITS, Location, Row, Split, one_of
from metalearn.data.files.cache import CACHE, ORIGIN, cached, key_of
from metalearn.data.files.image_file import class_sha256
from metalearn.data.files.image_folders import ClassFolder, class_folders, find_root, read_images
from metalearn.data.files.resize import METHODS
from metalearn.data.files.survey import examine, unread, verify_sums
from metalearn.data.images import ImageClasses, ImageSet
from metalearn.data.partition import file_partition, random_partition, split_sizes
from metalearn.data.pictures import Pictures
from metalearn.errors import ConfigError, DataError
from metalearn.files import cache_folder

VERSION = 2  # of the preparation; part of the cache's name
NAMED = 5  # classes that a message names before it counts


class ImageFolder(ImageClasses):
    """root: `root/<class>/*.png|jpg|jpeg`, or `root/{train,val,test}/<class>/…`, whose splits then hold.

    partition: `random`, or a file that maps classes to splits. min_images: leave out classes with fewer
    images. The constructor lists the folders, so that `check` knows whether the sizes can be had; it opens no
    image.
    """

    name = "image_folder"
    item_word = "file"
    locations = (Location("root"), Location("partition", words=("random",)), CACHE)

    def __init__(
        self,
        *,
        device: torch.device,
        root: str | None,
        cache_dir: str | None,
        partition: str,
        partition_seed: int,
        fractions: Sequence[float],
        min_images: int,
        resize: str,
        channels: int,
        **images: Any,
    ) -> None:
        super().__init__(device=device, channels=channels, **images)
        self.cache = cache_folder(cache_dir)
        self.partition, self.partition_seed, self.fractions = partition, partition_seed, tuple(fractions)
        self.min_images, self.resize, self.channels = min_images, resize, channels
        one_of("data.channels", channels, (1, 3))
        one_of("data.resize", resize, METHODS)
        self._check_dials()
        self.root, self.folders, self.layout, self.split_classes = self._survey(root)

    def _check_dials(self) -> None:
        problems = []
        if len(self.fractions) != 3 or min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            problems.append(
                f"data.fractions={list(self.fractions)}; expected three shares of train, val and test that "
                "add up to 1"
            )
        if self.partition != "random" and Path(self.partition).suffix not in (
            ".json",
            ".yaml",
            ".yml",
            ".csv",
        ):
            problems.append(
                f"data.partition={self.partition}; expected random, or the path of a .json, .yaml or .csv "
                "file"
            )
        if problems:
            raise ConfigError(problems)

    def _survey(self, root: str | None) -> tuple[Path, list[ClassFolder], str, dict[Split, list[int]]]:
        """Root, classes, how they are divided, and their numbers per split."""
        path = find_root(root)
        folders = [folder for folder in class_folders(path) if len(folder.files) >= self.min_images]
        if not folders:
            raise DataError(
                f"data.root={path} has no class with data.min_images={self.min_images} images; lower "
                "data.min_images"
            )
        names = [folder.name for folder in folders]
        if self.partition != "random":
            layout, partition = "file", file_partition(Path(self.partition).expanduser(), names)
        elif folders[0].split is not None:
            layout = "folders"
            partition = {
                split: [number for number, folder in enumerate(folders) if folder.split == split]
                for split in SPLITS
            }
        else:
            layout, partition = (
                "random",
                random_partition(len(names), split_sizes(len(names), self.fractions), self.partition_seed),
            )
        return path, folders, layout, partition

    def _load(self) -> ImageSet:
        files = [file for folder in self.folders for file in folder.files]
        names = [folder.name for folder in self.folders]
        dials: dict[str, Any] = {
            "size": self.input_spec.shape[-1],
            "channels": self.channels,
            "resize": self.resize,
        }
        if empty := [folder.name for folder in self.folders if not folder.files]:
            dials["empty"] = empty  # classes too, of which the files say nothing
        prepared = cached(
            self.cache,
            f"image_folder-{key_of(version=VERSION, files=_listing(self.root, files), **dials)}",
            self._build,
        )
        sizes = [len(folder.files) for folder in self.folders]
        return ImageSet(
            prepared.tensors["images"],
            sizes,
            self.split_classes,
            prepared.sha256,
            names,
            prepared.facts[ORIGIN],
            [file.name for file in files],
        )

    def recognised(self, row: Row, beside: Path) -> Row:
        """Also by the path of a file, relative to the file of tasks or else to data.root."""
        path = Path(str(row.item))
        if len(path.parts) > 1 or not row.owner:
            places = [beside / path, self.root / path]
            found = next((place for place in places if place.is_file()), None)
            if found is None:
                raise DataError(
                    f"{row.item} is neither beside the file of tasks nor in data.root={self.root}"
                )
            if not found.resolve().is_relative_to(self.root.resolve()):
                raise DataError(f"{found} is no picture of data.root={self.root}")
            if row.owner not in ("", found.parent.name):
                raise DataError(f"{row.item} is a picture of {found.parent.name!r}, not of {row.owner!r}")
            row = row._replace(owner=found.parent.name, item=found.name)
        return super().recognised(row, beside)

    @classmethod
    def audit(cls, root: str | None = None, cache_dir: str | None = None) -> str | None:
        """Whether the files are those of a SHA256SUMS in the root or the folder above."""
        return None if root is None else verify_sums(find_root(root))

    def pictures(self) -> Pictures:
        """The files before they are resized, those that cannot be read among them."""
        files = [file for folder in self.folders for file in folder.files]
        sizes = [len(folder.files) for folder in self.folders]
        return Pictures(
            names=[str(file.relative_to(self.root)) for file in files],
            class_of=np.arange(len(sizes)).repeat(sizes),
            classes=[folder.name for folder in self.folders],
            partition=self.split_classes,
            turned=self.rotations,
            read=lambda number: examine(files[number], self.root),
        )

    def unread(self) -> dict[str, list[str]]:
        return unread(self.root)

    def _build(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The pixels of all classes, and who they are of."""
        files = [file for folder in self.folders for file in folder.files]
        images, pictures = read_images(
            files, size=self.input_spec.shape[-1], channels=self.channels, resize=self.resize
        )
        rest = iter(pictures)
        contents = [class_sha256(islice(rest, len(folder.files))) for folder in self.folders]
        return {"images": images}, {"classes": [folder.name for folder in self.folders], ORIGIN: contents}

    def _counts(self) -> dict[Split, tuple[int, int]]:
        """Enough images in every class: `_size_problems` names those that have fewer than an episode asks
        for.
        """
        return {
            split: (len(self.split_classes[split]), shape.per_class) for split, shape in self.shapes.items()
        }

    def _size_problems(self, splits: Sequence[Split]) -> list[str]:
        return self._short_classes(splits) + [
            self._with_way_out(problem, splits) for problem in super()._size_problems(splits)
        ]

    def _short_classes(self, splits: Sequence[Split]) -> list[str]:
        """Names of classes of which an episode could ask for more images than there are."""
        needed = max(self.shapes[split].per_class for split in splits)
        asked = [
            (self.folders[n], self.shapes[split].per_class)
            for split in splits
            for n in self.split_classes[split]
        ]
        short = [
            f"{folder.name} ({len(folder.files)})"
            for folder, per_class in asked
            if len(folder.files) < per_class
        ]
        if not short:
            return []
        named = ", ".join(short[:NAMED]) + (f" and {len(short) - NAMED} more" if len(short) > NAMED else "")
        return [
            f"{len(short)} of {len(asked)} classes have fewer images than the {needed} of shot + query_shot: "
            f"{named}. "
            f"Lower data.shot or data.query_shot, or leave these classes out with data.min_images={needed}"
        ]

    def _with_way_out(self, problem: str, splits: Sequence[Split]) -> str:
        """What a split that is judged alone may do about too few classes, if none of the others was trained
        on.
        """
        if (
            len(splits) > 1
            or self.layout != "random"
            or len(self.split_classes[splits[0]]) == len(self.folders)
        ):
            return problem
        everything = ",".join("1" if split in splits else "0" for split in SPLITS)
        all_classes = f"all {len(self.folders)} classes with data.fractions=[{everything}]"
        return f"{problem}; a run that was trained on other data can be judged on {all_classes}"

    def _facts(self) -> dict[str, Any]:
        seed = (
            {"partition_seed": self.partition_seed, "fractions": list(self.fractions)}
            if self.layout == "random"
            else {}
        )
        return {
            "partition": self.layout,
            **seed,
            "resize": self.resize,
            "channels": self.channels,
            "min_images": self.min_images,
        }


def _listing(root: Path, files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What tells one state of the folder from another without reading the images: path, bytes, time of
    change.
    """
    return [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
