"""SFT on conversations of two turns equals likelihood averaged over their tokens with AdamW in plain Hugging Face."""

import pytest

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
