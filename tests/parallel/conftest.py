"""One start of four processes for the tests of topology, collectives and context."""

import parallel_worker
import pytest
from distributed_runner import run_distributed
from parallel_cases import CASES, CONTEXT_CASES, GRIDS, NUM_RANKS, SHARING_LAYOUTS, TENSOR_SIZES


@pytest.fixture(scope="session")
def four_processes():
    return run_distributed(
        parallel_worker.four_processes, NUM_RANKS, GRIDS, TENSOR_SIZES, CASES, SHARING_LAYOUTS, CONTEXT_CASES
    )
