"""An experiment runner for meta-learning. In Python: `metalearn.load(RUN_DIR).adapt(support_inputs,
labels).predict(inputs)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metalearn.inference.learner import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Lazy, since `metalearn --help` imports this package and must not wait for torch.
    if name == "load":
        from metalearn.inference.learner import load

        return load
    raise AttributeError(f"module 'metalearn' has no attribute {name!r}")
