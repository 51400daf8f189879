"""A session fixture that starts four processes once for the tests of topology, collectives and context.

Every run of pytest imports this module, so the imports that take seconds are in the fixture.
"""

import pytest

from tests.support.distributed_runner import run_distributed


@pytest.fixture(scope="session")
def four_processes():
    """Return the reports of parallel_worker.four_processes, by rank."""
    from tests.parallel import parallel_cases as cases
    from tests.parallel import parallel_worker

    return run_distributed(
        parallel_worker.four_processes,
        cases.NUM_RANKS,
        cases.GRIDS,
        cases.TENSOR_SIZES,
        cases.CASES,
        cases.SHARING_LAYOUTS,
        cases.CONTEXT_CASES,
        cases.RESOURCE_LAYOUTS,
    )
