"""Supervised warm-up of the policy on demonstrations."""

from collections.abc import Callable

import torch

from megatron_prime.config.tables.sft import SFTConfig
from megatron_prime.data.mixing import ResumableStream
from megatron_prime.data.sft import SFTExample
from megatron_prime.observability.metrics import Metrics
from megatron_prime.training.losses import SFTRowLoss, minibatch_weights_BT
from megatron_prime.training.trainable import Trainable


class SFTTrainer:
    """Maximizes the likelihood of demonstrated responses, averaged over the tokens of each batch.

    Args:
        config: batch size and number of steps.
        policy: the model to train; prompt tokens have no loss.
        stream: demonstrations, equal on every rank.
    """

    def __init__(self, config: SFTConfig, policy: Trainable, stream: ResumableStream[SFTExample]) -> None:
        self._config = config
        self._policy = policy
        self._stream = stream

    def run(self, after_step: Callable[[int, Metrics], None]) -> None:
        """Train; call `after_step` with the number of steps done and their metrics. Collective over all ranks."""
        for step_index in range(self._config.num_steps):
            metrics = Metrics()
            with metrics.timed("step"):
                metrics.add("sft", self._step())
            after_step(step_index + 1, metrics)

    def _step(self) -> dict[str, float]:
        examples = self._stream.next(self._config.batch_size)
        sequences = [(example.prompt_ids, example.response_ids) for example in examples]
        lengths_B = torch.tensor([len(response) for _, response in sequences])
        mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
        rows = list(range(len(sequences)))
        weights_BT = minibatch_weights_BT(mask_BT, rows, "token").to(self._policy.topology.platform.device)
        lr = self._policy.lr
        _, metrics = self._policy.update(sequences, rows, SFTRowLoss(weights_BT))
        self._policy.advance_schedule()
        return metrics | {"lr": lr, "num_tokens": float(mask_BT.sum())}
