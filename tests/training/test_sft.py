"""SFT on conversations of two turns equals likelihood averaged over their tokens with AdamW in plain Hugging Face."""

from types import SimpleNamespace

import pytest
import torch

from megatron_prime.config.tables.sft import SFTConfig
from megatron_prime.data.sft import SFTExample
from megatron_prime.training.sft import SFTTrainer
from megatron_prime.types import Turn

STEPS = 3


@pytest.fixture
def histories(two_processes: list[dict[str, list[float]]]) -> list[dict[str, list[float]]]:
    """Return, by rank, its losses, and the losses and norms of the same steps in plain Hugging Face."""
    return two_processes


def test_every_step_equals_plain_hf(histories):
    for history in histories:
        assert history["loss"] == pytest.approx(history["hf_loss"], abs=1e-5)
        assert history["grad_norm"] == pytest.approx(history["hf_grad_norm"], rel=1e-4)


def test_all_ranks_report_the_same_numbers(histories):
    assert histories[0] == histories[1]


def test_the_reported_learning_rate_is_the_one_used_and_warms_up(histories):
    assert histories[0]["lr"] == pytest.approx([0.0, 1.5e-3, 3e-3])

    assert histories[0]["num_tokens"] == [6 * 10] * STEPS
    assert histories[0]["done"] == [1, 2, 3]


class RecordingPolicy:
    """Stands for a `Trainable`; it keeps the weights of the loss instead of training."""

    lr = 0.0
    topology = SimpleNamespace(platform=SimpleNamespace(device=torch.device("cpu")))

    def update(self, sequences, rows, loss):
        self.weights_BT = loss.weights_BT
        return None, {"loss": 0.0}

    def advance_schedule(self) -> None:
        pass


@pytest.mark.parametrize(
    ("train_replies", "weights"), [(False, [1 / 4, 1 / 4, 0, 1 / 4, 1 / 4]), (True, [1 / 5] * 5)]
)
def test_replies_are_trained_only_where_asked(train_replies, weights):
    # Two tokens, a reply of one token, two tokens.
    example = SFTExample((1,), (2, 3, 4, 5, 6), (Turn(2, 3), Turn(5, 5)))
    config = SFTConfig(batch_size=1, train_replies=train_replies)
    policy = RecordingPolicy()
    stream = SimpleNamespace(next=lambda count: [example] * count)
    SFTTrainer(config, policy, stream).step()  # type: ignore[arg-type]
    assert policy.weights_BT.tolist() == [pytest.approx(weights)]
