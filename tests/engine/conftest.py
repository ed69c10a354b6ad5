"""Every algorithm on every data source that suits it, as in the contract."""

from tests.test_contract import folder, pair

__all__ = ["folder", "pair"]
