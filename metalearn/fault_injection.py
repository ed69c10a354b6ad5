"""Places where a test may ask the process to die, so that a kill at exactly this moment can be rehearsed.

METALEARN_FAULT=PLACE or PLACE@N in the environment sends SIGKILL to the process at the N-th visit (from 1).
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_visits: Counter[str] = Counter()


def fault(place: str) -> None:
    """Die here, by SIGKILL, if the environment asks for it."""
    wanted = os.environ.get("METALEARN_FAULT")
    if wanted is None:
        return
    name, _, visit = wanted.partition("@")
    _visits[place] += 1
    if name == place and _visits[place] == int(visit or 1):
        os.kill(os.getpid(), signal.SIGKILL)
