"""Supervised warm-up of the policy on demonstrations."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_prime.config.tables.sft import SFTConfig
from megatron_prime.data.mixing import ResumableStream
from megatron_prime.data.sft import SFTExample
from megatron_prime.observability.metrics import Metrics
from megatron_prime.training.losses import SFTRowLoss, minibatch_weights_BT
from megatron_prime.training.trainable import Trainable
from megatron_prime.types import policy_mask


class SFTTrainer:
    """Maximizes the likelihood of demonstrated responses, averaged over the policy's tokens of each batch.

    Args:
        config: batch size.
        policy: the model to train; tokens of prompts have no loss, nor have replies unless sft.train_replies.
        stream: demonstrations, equal on every rank.
        step_index: number of steps already done (in a resumed run).
    """

    def __init__(
        self,
        config: SFTConfig,
        policy: Trainable,
        stream: ResumableStream[SFTExample],
        step_index: int = 0,
    ) -> None:
        self._config = config
        self._policy = policy
        self._stream = stream
        self.step_index = step_index

    def step(self) -> Metrics:
        """Take one optimizer step and return its metrics. Collective over all ranks."""
        metrics = Metrics()
        with metrics.timed("step"):
            metrics.add("sft", self._step())
        self.step_index += 1
        return metrics

    def _step(self) -> dict[str, float]:
        examples = self._stream.next(self._config.batch_size)
        sequences = [(example.prompt_ids, example.response_ids) for example in examples]
        mask_BT = _trained_mask(examples, self._config.train_replies)
        rows = list(range(len(sequences)))
        weights_BT = minibatch_weights_BT(mask_BT, rows, "token").to(self._policy.topology.platform.device)
        lr = self._policy.lr
        _, metrics = self._policy.update(sequences, rows, SFTRowLoss(weights_BT))
        self._policy.advance_schedule()
        return metrics | {"lr": lr, "num_tokens": float(mask_BT.sum())}


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss on demonstrations that are not trained on."""

    loss: float
    """Nats per token that the policy is to write."""
    num_examples: int

    def metrics(self) -> dict[str, float]:
        """Return the values to log, by name."""
        return {"loss": self.loss}

    def summary(self) -> str:
        """Return the result in one line."""
        return f"{self.loss:.4f} nats per token ({self.num_examples} demonstrations)"


def held_out_loss(policy: Trainable, examples: Sequence[SFTExample], batch_size: int) -> HeldOutLoss:
    """Score demonstrations in batches, and return their mean loss over the policy's tokens. Collective."""
    total, num_tokens = 0.0, 0
    for start in range(0, len(examples), batch_size):
        batch = [examples[row] for row in range(start, min(start + batch_size, len(examples)))]
        logprobs_BT = policy.score([(one.prompt_ids, one.response_ids) for one in batch]).logprobs_BT
        mask_BT = _trained_mask(batch).to(logprobs_BT.device)
        total -= logprobs_BT[mask_BT].double().sum().item()
        num_tokens += int(mask_BT.sum())
    return HeldOutLoss(total / num_tokens, len(examples))


def _trained_mask(examples: Sequence[SFTExample], with_replies: bool = False) -> torch.Tensor:
    """Return bool [B, T]: True on the tokens that the policy is to write, with holes on replies unless they count."""
    masks = [
        torch.tensor(policy_mask(() if with_replies else example.turns, len(example.response_ids)))
        for example in examples
    ]
    return torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)
