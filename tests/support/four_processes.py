"""A session fixture that starts four processes once for the tests of topology, collectives and context."""

import pytest

from tests.parallel import parallel_worker
from tests.parallel.parallel_cases import (
    CASES,
    CONTEXT_CASES,
    GRIDS,
    NUM_RANKS,
    RESOURCE_LAYOUTS,
    SHARING_LAYOUTS,
    TENSOR_SIZES,
)
from tests.support.distributed_runner import run_distributed


@pytest.fixture(scope="session")
def four_processes():
    """Return the reports of parallel_worker.four_processes, by rank."""
    return run_distributed(
        parallel_worker.four_processes,
        NUM_RANKS,
        GRIDS,
        TENSOR_SIZES,
        CASES,
        SHARING_LAYOUTS,
        CONTEXT_CASES,
        RESOURCE_LAYOUTS,
    )
