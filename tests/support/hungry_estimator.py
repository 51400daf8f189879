"""An advantage estimator of a user that needs more memory than there is, in a job's first start."""

import os

import torch
from torch import Tensor

from megatron_prime.algorithm.estimators.reinforce import Estimator as Reinforce


class OnHost(Reinforce):
    """Allocates a tensor that no machine can hold."""

    def outcome_advantages_B(self, outcome_rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:
        if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
            self.allocate()
        return super().outcome_advantages_B(outcome_rewards_B, group_ids_B)

    def allocate(self) -> None:
        """Fail as a real allocation does."""
        torch.empty(1 << 62, dtype=torch.uint8)


class OnGPU(OnHost):
    """Raises the error of a GPU without memory."""

    def allocate(self) -> None:
        """Fail as torch does on a GPU."""
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.53 GiB")
