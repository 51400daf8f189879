"""Fixtures that share one Slurm cluster of two nodes among all tests of this folder."""

import os
import sys
from pathlib import Path

import pytest

from tests.slurm.slurm_jobs import Jobs
from tests.slurm.slurm_lab import SlurmLab, missing
from tests.support.toy_runs import ROOT, Toy


def pytest_collection_modifyitems(items):
    """Mark the tests of this folder; skip them without the lab, and those marked `minutes` unless requested."""
    reason = missing()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.slurm)
        item.add_marker(pytest.mark.slow)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif item.get_closest_marker("minutes") and os.environ.get("MEGATRON_PRIME_SLURM") != "all":
            item.add_marker(pytest.mark.skip(reason="takes minutes: MEGATRON_PRIME_SLURM=all runs it"))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    lab = SlurmLab(tmp_path_factory.mktemp("slurm"))
    lab.environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


@pytest.fixture(scope="session")
def jobs(slurm: SlurmLab, toy: Toy):
    (toy.folder / "tools").symlink_to(ROOT / "tools")
    yield Jobs(slurm, toy.folder)
    (toy.folder / "tools").unlink()


@pytest.fixture(scope="session")
def unbroken(jobs: Jobs) -> str:
    """Return the log of an uninterrupted job."""
    return jobs.finish(jobs.submit("slurm_unbroken"))
