"""Functions that the ranks of tests of overlapping runs call."""

import os
from collections.abc import Mapping, Sequence

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
