"""Sampled responses on disk, with everything that was computed of each token: one Parquet file per logged step.

Training writes `run_dir/rollouts/step-00000012.parquet`; `rollout`, `eval` and tools use the same format.

- `schema`: the columns, their meaning and types, and the description that each file carries
- `writer`: writes the file of one step, as a whole or not at all
- `folder`: the files of a run, of limited size
- `turns`: the turns of a logged response
- `versions`: the policy versions of a logged response
- `reader`: lists the steps of a run, and reads the columns of a step
"""

from megatron_prime.config.tables.observability.rollout_log import ROLLOUTS
from megatron_prime.observability.rollout_log.reader import RolloutFile, log_folder, logged_steps
from megatron_prime.observability.rollout_log.schema import COLUMNS, FileInfo, step_path
from megatron_prime.observability.rollout_log.writer import write_rollouts

__all__ = [
    "COLUMNS",
    "ROLLOUTS",
    "FileInfo",
    "RolloutFile",
    "log_folder",
    "logged_steps",
    "step_path",
    "write_rollouts",
]
