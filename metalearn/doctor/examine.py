"""`metalearn doctor`: checks of this installation and machine, of one run's folder, or of an author's own
method, one line each.

Every check is a function that returns what it found, or raises. Nothing is repaired, and nothing is kept but
what PyTorch's compiler and data sources put into the cache folder.
"""

from __future__ import annotations

from pathlib import Path

from metalearn.doctor.checks import examine
from metalearn.doctor.gradients import plans, second_order
from metalearn.doctor.machine import allocator, device, processor, threads, versions
from metalearn.doctor.methods import Choice
from metalearn.doctor.run_folder import RunFolder
from metalearn.doctor.storage import audits, bit_flip

FAILED = 1


def examine_machine() -> int:
    """Whether runs on this machine can be trusted; the exit code."""
    failed = examine(
        [
            ("versions", versions),
            ("device", device),
            ("processor", processor),
            ("threads", threads),
            ("allocator", allocator),
            ("second order", second_order),
            *plans(),
            ("checkpoints", bit_flip),
            *audits(),
        ]
    )
    return FAILED if failed else 0


def examine_run(run_dir: Path, overrides: list[str]) -> int:
    """Whether a run can be resumed and judged; the exit code, which is that of CheckpointError if none of its
    checkpoints is valid.
    """
    folder = RunFolder(run_dir, overrides)
    failed = examine(folder.checks())
    return folder.exit_code(failed)


def examine_method(words: list[str], config_dir: str | None = None) -> int:
    """Whether what these words of a command line choose keeps the contract of `metalearn.testing`; the exit
    code.

    Raises ConfigError or DataError where a run with these words would be refused.
    """
    failed = examine(Choice(words, config_dir).checks())
    return FAILED if failed else 0
