import pytest
import torch

from megatron_prime.algorithm.overlong import overlong_penalties_B


def by_the_equation(length, max_tokens, buffer_tokens):
    """Eq. 13 of DAPO, whose L_max is max_tokens and L_cache buffer_tokens."""
    if length <= max_tokens - buffer_tokens:
        return 0.0
    if length <= max_tokens:
        return ((max_tokens - buffer_tokens) - length) / buffer_tokens
    return -1.0


@pytest.mark.parametrize(("max_tokens", "buffer_tokens"), [(100, 20), (8, 8), (5, 1)])
def test_it_is_dapo_s_equation(max_tokens, buffer_tokens):
    lengths = list(range(1, max_tokens + 1))
    wanted = [by_the_equation(length, max_tokens, buffer_tokens) for length in lengths]
    found = overlong_penalties_B(torch.tensor(lengths), max_tokens, buffer_tokens)
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    halved = overlong_penalties_B(torch.tensor(lengths), max_tokens, buffer_tokens, penalty=0.5)
    assert halved.tolist() == pytest.approx([value / 2 for value in wanted], abs=1e-6)


@pytest.mark.parametrize(
    ("buffer_tokens", "penalty", "reason"),
    [(0, 1.0, r"1 \.\. max"), (9, 1.0, r"1 \.\. max"), (2, 2.0, "penalty is 2")],
)
def test_other_arguments_are_refused(buffer_tokens, penalty, reason):
    with pytest.raises(ValueError, match=reason):
        overlong_penalties_B(torch.tensor([1]), 8, buffer_tokens, penalty)
