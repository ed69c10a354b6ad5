"""Whether a launcher such as torchrun started this process, as one of several ranks of a run."""

from __future__ import annotations

import os

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int] | None:
    """This process's rank and the number of ranks; None if it is alone."""
    if any(name not in os.environ for name in VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
