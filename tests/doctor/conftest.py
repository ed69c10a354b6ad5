"""Type, threads and caches as they were, as for the command line."""

from tests.cli.conftest import as_it_was

__all__ = ["as_it_was"]
