"""predict: what a trained run makes of a person's own pictures, after a few examples of each label."""

from __future__ import annotations

import argparse
from pathlib import Path

from metalearn.errors import ConfigError


def run(args: argparse.Namespace) -> int:
    """Learn labels from a few pictures of each, and name others: one line per picture.

    metalearn predict RUN_DIR unknown.png more/*.png --support examples
    metalearn predict RUN_DIR/checkpoints/last unknown.png --support examples --steps 5

    examples/<label>/ holds the pictures of a label. A line is: picture, label and its probability, with tabs
    between them. The same from Python: metalearn.load("RUN_DIR").adapt(…).predict(…).
    """
    pictures, labels = support_of(args.support)
    import metalearn  # as a person would in Python; `load` brings torch

    adapted = metalearn.load(args.run, trusted=args.trusted).adapt(pictures, labels, steps=args.steps)
    probabilities = adapted.predict_proba(args.pictures)  # refuses a run that predicts numbers
    assert adapted.classes is not None
    for picture, row in zip(args.pictures, probabilities, strict=True):
        best = int(row.argmax())
        print(f"{picture}\t{adapted.classes[best]}\t{row[best]:.4f}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help="folder of a run, or of its checkpoint")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", type=Path, help="pictures to name")
    parser.add_argument(
        "--support",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder with a folder of pictures per label",
    )
    parser.add_argument("--steps", metavar="N", type=int, help="adaptation steps, by default the run's own")
    parser.add_argument(
        "--trusted",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="package whose classes the run names",
    )


def support_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures below folder/<label>/, and the label of each. ConfigError if there are none."""
    found = [
        (picture, label.name)
        for label in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if label.is_dir() and not label.name.startswith(".")
        for picture in sorted(label.iterdir())
        if picture.is_file() and not picture.name.startswith(".")
    ]
    if not found:
        reason = "holds no picture in a folder of a label" if folder.is_dir() else "is not a folder"
        raise ConfigError(
            f"--support={folder} {reason}; put the pictures of each label into {folder}/<label>/"
        )
    return [picture for picture, _ in found], [label for _, label in found]
