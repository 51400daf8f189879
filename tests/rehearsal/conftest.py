"""Reports of a small run, rehearsed once for all tests of the package."""

import pytest

from megatron_prime.rehearsal.processes import rehearse
from tests.support.rehearsed_runs import small_run

RANKS = [0, 1, 2, 4, 7]


@pytest.fixture(scope="package")
def small(tmp_path_factory):
    """The run."""
    return small_run(tmp_path_factory.mktemp("rehearsed"))


@pytest.fixture(scope="package")
def reports(small):
    """The reports of RANKS, by rank."""
    return {report.rank: report for report in rehearse(small, RANKS, jobs=2)}
