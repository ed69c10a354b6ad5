"""Packages that a logger needs and that are installed only for it."""

from __future__ import annotations

from metalearn.errors import ConfigError


def not_installed(logger: str) -> ConfigError:
    """logger: the name of its YAML, which is that of its extra as well."""
    return ConfigError(
        f"logger={logger} needs a package that is not installed; install it with: pip install "
        f"'metalearn-runner[{logger}]'"
    )
