"""What every method declares of itself, and where that is stored. The losses of short runs are records of the
recipes in conf/experiment (`metalearn.sweep.smoke`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metalearn.config.loader import packaged_options
from tests.plugins import class_of

DECLARATIONS = Path(__file__).with_name("declarations.json")
DECLARED = ("kinds", "handles_ragged", "order_matters", "plans", "trains_on")


def declarations() -> dict[str, dict[str, Any]]:
    """What every method of conf/ takes, in JSON values: tests are chosen and tasks refused by that, so that a
    wrong word would leave out the tests that find it.
    """
    found = {
        name: {word: getattr(class_of(name), word) for word in DECLARED} for name in packaged_options("algo")
    }
    in_json: dict[str, dict[str, Any]] = json.loads(json.dumps(found))
    return in_json


def declarations_stored() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = (
        json.loads(DECLARATIONS.read_text(encoding="utf-8")) if DECLARATIONS.exists() else {}
    )
    return found
