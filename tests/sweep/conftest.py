"""What stands in for the trainings of a sweep."""

from tests.cli.conftest import as_it_was, trainings

__all__ = ["as_it_was", "trainings"]
