"""Which tests stay together when two processes run the suite (`make test`), by pytest-xdist.

Tests of one file share its fixtures; files that share what takes long to start, or what there is one of on a machine,
are in one group. Long groups go first, so that the two processes end at about the same time. (The marks that
pytest-xdist has for this are not seen by pytest 9.2, and it schedules single tests instead.)
"""

from typing import Any

import pytest

GROUPS = (
    # SGLang servers start with all cores; more at a time would run into their deadlines.
    ("tests/engines/sglang/", "servers"),
    ("tests/cli/", "toy"),
    ("tests/evaluation/test_evaluator", "toy"),
    ("tests/preflight/test_doctor", "toy"),
    ("tests/examples/", "toy"),
    ("tests/slurm/", "toy"),
    ("tests/tools/test_chaos", "toy"),
    ("tests/models/test_passthrough", "toy"),
    ("tests/parallel/test_watchdog", "toy"),
    ("tests/training/health/", "toy"),
    ("tests/training/test_loop", "toy"),
    ("tests/training/test_sft", "toy"),
    ("tests/training/test_trainer", "toy"),
    # Attacks look for what was left behind by the one user that boxes run as.
    ("tests/rewards/", "boxes"),
    ("tests/benchmarks/test_verifiers", "boxes"),
    ("tests/conversion/", "conversion"),
    ("tests/parallel/", "parallel"),
    ("tests/logprobs/", "parallel"),
    ("tests/resharding/", "resharding"),
)
"""(beginning of a path, group); the first that fits counts. A file without one is a group of its own."""
OF_FIXTURE = {
    "_live_engine": "servers",
    "toy": "toy",
    "resharded_models": "resharding",
    "hf_models": "conversion",
    "four_processes": "parallel",
}
"""Session fixture -> the group that all its users must be in."""
LONGEST = (
    "servers",
    "toy",
    "tests/training/checkpoint/test_store.py",
    "tests/training/test_trainable.py",
    "tests/models/test_forward.py",
    "boxes",
)
"""Groups that begin first."""


def group_of(nodeid: str) -> str:
    """The group of a test."""
    path = nodeid.split("::")[0]
    return next((group for start, group in GROUPS if path.startswith(start)), path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse a fixture that two groups would start; in the processes of pytest-xdist, long groups come first."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if OF_FIXTURE.get(fixture, group_of(item.nodeid)) != group_of(item.nodeid):
                raise pytest.UsageError(
                    f"{item.nodeid} uses {fixture}: put its file into {OF_FIXTURE[fixture]!r} of {__name__}.GROUPS"
                )
    if not hasattr(config, "workerinput"):
        return
    places = {group: place for place, group in enumerate(LONGEST)}
    # A stable sort: the tests of a group stay in their order.
    items.sort(key=lambda item: places.get(group_of(item.nodeid), len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """A process takes a whole group at a time, in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    class LoadGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return LoadGroups(config, log)
