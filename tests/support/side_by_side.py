"""Assignment of tests to groups that stay in one process when `make test` runs pytest-xdist with several processes.

Tests of one file share its fixtures. Files that share an expensive fixture, or something that exists once per machine,
are in one group. The longest groups start first, so that all processes finish at about the same time. (pytest-xdist's
own marks for this are not seen by pytest 9.2, with which it would schedule single tests.)
"""

from typing import Any

import pytest

GROUPS = (
    # A second process that starts servers imports SGLang and starts the shared servers once more. That pays with the
    # slow tests alone: one group with all servers would still run when everything else has ended.
    ("tests/cli/prm/test_serving", "slow servers"),
    ("tests/rollout/schedules/test_continuous", "slow servers"),
    ("tests/engines/sglang/weights/test_shard_sync.py::test_experts", "slow servers"),
    ("tests/engines/sglang/weights/test_shard_sync.py::test_returned_experts", "slow servers"),
    ("tests/engines/sglang/", "servers"),
    ("tests/cli/test_quickstart.py::test_the_policy_learns", "learning"),
    ("tests/cli/test_plan.py", "plan"),
    ("tests/cli/", "toy"),
    ("tests/evaluation/test_evaluator", "toy"),
    ("tests/preflight/test_doctor", "toy"),
    ("tests/preflight/test_replay", "toy"),
    ("tests/examples/", "toy"),
    ("tests/quickstart/", "toy"),
    ("tests/slurm/", "toy"),
    ("tests/tools/test_chaos", "toy"),
    # One browser at a time: its pages are slow to open while another one works.
    ("tests/viewer/test_in_browser", "browser"),
    ("tests/benchmarks/test_viewer", "browser"),
    ("tests/models/test_passthrough", "toy"),
    ("tests/parallel/test_watchdog", "toy"),
    ("tests/training/health/", "toy"),
    ("tests/training/test_loop", "toy"),
    ("tests/training/test_sft", "toy"),
    ("tests/training/test_trainer", "toy"),
    # All sandboxes run as one user, and the attack tests look for processes that this user left behind.
    ("tests/rewards/", "sandboxes"),
    ("tests/benchmarks/test_verifiers", "sandboxes"),
    ("tests/conversion/", "conversion"),
    ("tests/parallel/", "parallel"),
    ("tests/logprobs/", "parallel"),
    ("tests/resharding/", "resharding"),
    ("tests/rehearsal/", "rehearsal"),
)
"""(start of a test's id, group) pairs, of which the first match applies. A file without a match is a separate group."""
GROUPS_OF_FIXTURE = {
    "_live_engine": ("servers", "slow servers"),
    "toy": ("toy",),
    "resharded_models": ("resharding",),
    "hf_models": ("conversion",),
    "four_processes": ("parallel",),
}
"""Session fixture -> groups of which each test that uses it must belong to one; each group makes it once."""
LONGEST = (
    "toy",
    "servers",
    "learning",
    "slow servers",
    "rehearsal",
    "tests/training/checkpoint/test_store.py",
    "tests/training/test_trainable.py",
    "tests/models/test_forward.py",
    "sandboxes",
    "resharding",
    "parallel",
    "tests/gpu/test_pretend_gpu.py",
    "tests/training/test_residency.py",
    "tests/tools/test_gpu_check.py",
    "tests/benchmarks/planning/test_plan_accuracy.py",
    "conversion",
)
"""Groups that start first, in this order."""


def group_of(nodeid: str) -> str:
    """Return the group of a test."""
    return next((group for start, group in GROUPS if nodeid.startswith(start)), nodeid.split("::")[0])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Raise UsageError if another group than planned would start a fixture, and put long groups first."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            groups = GROUPS_OF_FIXTURE.get(fixture)
            if groups is not None and group_of(item.nodeid) not in groups:
                raise pytest.UsageError(
                    f"{item.nodeid} uses {fixture}: put its file into {' or '.join(groups)!r} of {__name__}.GROUPS"
                )
    if not hasattr(config, "workerinput"):
        return
    order = {group: index for index, group in enumerate(LONGEST)}
    # The sort is stable, so the tests of a group keep their order.
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Return a scheduler that gives a process one whole group at a time, in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    class LoadGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return LoadGroups(config, log)
