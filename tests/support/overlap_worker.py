"""Functions that the ranks of tests of overlapping runs call."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support import toy_worker

OVERLAP = ["rollout.max_staleness=1", "evaluation.benchmarks={}"]
IN_BACKGROUND = "advantage.estimator=tests.support.background_sampling:Estimator"
"""Has the embedded engine sample in a thread. The module must not be imported but by the run."""


def train(folder: str, runs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Run `train` one step off in folders of these names; return the outputs.

    Runs in the background come last, because they change the process.
    """
    os.chdir(folder)
    outputs = {}
    for name, overrides in runs.items():
        code, outputs[name] = toy_worker.run("train", "run.toml", f"run_dir={name}", *OVERLAP, *overrides)
        assert code == 0, outputs[name]
    return outputs


def alone(folder: str) -> dict[str, Any]:
    """Run in one process: in the main thread, with a reward server that goes away, and in a thread."""
    return {
        **train(folder, {"ahead": []}),
        "outage": outage(),
        **train(folder, {"ahead in a thread": [IN_BACKGROUND]}),
    }


def outage() -> list[tuple[int, str]]:
    """Run with a reward server that goes away while the batch of step 3 is sampled, and again with a sound one."""
    from megatron_prime.observability.heartbeat import current
    from tests.support.reward_server import RewardServer

    results, port = [], 0
    for goes_away in (lambda: (current().step, current().phase) == (2, "rollout"), lambda: False):
        with RewardServer(port, goes_away) as server:
            port = server.port
            settings = [f"reward.verifier={server.url}", "reward.http.max_outage_s=0.5"]
            results.append(toy_worker.run("train", "run.toml", "run_dir=ahead_outage", *OVERLAP, *settings))
    return results
