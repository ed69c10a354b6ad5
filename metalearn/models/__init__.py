"""Networks that turn inputs into features."""

from metalearn.models.base import Model, Norm

__all__ = ["Model", "Norm"]
