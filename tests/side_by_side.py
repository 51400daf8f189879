"""Which tests stay together when two processes run the suite (`make test`): pytest-xdist with --dist loadgroup.

Tests of one file share its fixtures; files that share what takes long to start, or what there is one of on a machine,
share a group. Long groups go first, so that the two end at about the same time.
"""

import pytest

BY_FIXTURE = {
    "_live_engine": "servers",
    "toy": "toy",
    "resharded_models": "resharding",
    "greedy_responses": "resharding",
    "hf_models": "conversion",
    "four_processes": "parallel",
}
"""Session fixture -> group of every file that has a test with it."""
BY_PATH = {
    # One Slurm at a time, and most of its jobs train the toy.
    "tests/slurm/": "toy",
    # SGLang servers start with all cores; so many at a time would run into their deadlines.
    "tests/resharding/test_sglang_path.py": "servers",
    "tests/rollout/test_sglang_": "servers",
    # Attacks look for what was left behind by the one user that boxes run as.
    "tests/rewards/": "boxes",
    "tests/benchmarks/test_verifiers.py": "boxes",
}
"""Beginning of a path -> group."""
LONGEST = (
    "servers",
    "toy",
    "tests/training/test_checkpoint.py",
    "tests/examples/test_quickstart.py",
    "tests/training/test_trainable.py",
    "tests/slurm/test_prime_70b.py",
    "tests/models/test_forward.py",
    "boxes",
)
"""Groups that begin first."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with the group of its file, and sort groups by what takes long; with pytest-xdist alone."""
    if not hasattr(config, "workerinput"):
        return
    groups = _groups(items)
    places = {group: place for place, group in enumerate(LONGEST)}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups[_file_of(item)]))
    # A stable sort: the tests of a file stay in their order.
    items.sort(key=lambda item: places.get(groups[_file_of(item)], len(places)))


def _groups(items: list[pytest.Item]) -> dict[str, str]:
    """File -> group."""
    groups: dict[str, str] = {}
    for item in items:
        path = _file_of(item)
        if path not in groups:
            groups[path] = next((group for start, group in BY_PATH.items() if path.startswith(start)), path)
        for fixture in getattr(item, "fixturenames", ()):
            if groups[path] == path:
                groups[path] = BY_FIXTURE.get(fixture, path)
    return groups


def _file_of(item: pytest.Item) -> str:
    return item.nodeid.split("::")[0]
