"""The contract that every algorithm, source and model keeps, for our tests and for yours.

    from metalearn.testing import check_algorithm, check_model, check_source

Each makes its checks in order and raises ContractError, an AssertionError, at the first that fails; under
pytest, run the checks of ALGORITHM_CHECKS, SOURCE_CHECKS and MODEL_CHECKS one by one with `run`, so that each
has a name. `metalearn doctor algo=mine` does that from the command line. No test framework is imported.
"""

from metalearn.testing.algorithms import ALGORITHM_CHECKS, Trial, check_algorithm
from metalearn.testing.checking import ContractError, NotApplicable, name_of, run
from metalearn.testing.models import MODEL_CHECKS, ModelTrial, check_model
from metalearn.testing.sources import SOURCE_CHECKS, SourceTrial, check_source

__all__ = [
    "ALGORITHM_CHECKS",
    "MODEL_CHECKS",
    "SOURCE_CHECKS",
    "ContractError",
    "ModelTrial",
    "NotApplicable",
    "SourceTrial",
    "Trial",
    "check_algorithm",
    "check_model",
    "check_source",
    "name_of",
    "run",
]
