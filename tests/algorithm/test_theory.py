"""docs/theory.md: each of its statements on tables that are small enough to enumerate, in float64.

A response is T tokens of a small alphabet. The reference is a random autoregressive table; sums over all responses are
exact, so that no statement rests on samples.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from megatron_prime.algorithm.implicit_reward import process_rewards_BT, sequence_scores_B
from megatron_prime.algorithm.prm_loss import prm_loss
from megatron_prime.algorithm.prm_rows import ScoredRows
from megatron_prime.algorithm.tensor_ops import discounted_return_BT
from megatron_prime.config.tables.prm import PRMConfig

ALPHABET, LENGTH = 3, 4
RESPONSES = list(itertools.product(range(ALPHABET), repeat=LENGTH))
MASK_BT = torch.ones(len(RESPONSES), LENGTH, dtype=torch.bool)


def random_table(seed: int) -> dict[tuple[int, ...], Tensor]:
    """Return an autoregressive model: the log-probs of the next token behind every prefix."""
    random = torch.Generator().manual_seed(seed)
    prefixes = [
        prefix for length in range(LENGTH) for prefix in itertools.product(range(ALPHABET), repeat=length)
    ]
    logits = {prefix: torch.randn(ALPHABET, generator=random, dtype=torch.float64) for prefix in prefixes}
    return {prefix: row - row.logsumexp(0) for prefix, row in logits.items()}


def token_logprobs_BT(table: dict[tuple[int, ...], Tensor]) -> Tensor:
    return torch.stack([torch.stack([table[y[:t]][y[t]] for t in range(LENGTH)]) for y in RESPONSES])


def outcomes_B(seed: int) -> Tensor:
    return (torch.rand(len(RESPONSES), generator=torch.Generator().manual_seed(seed)) < 0.4).double()


def soft_value(prefix: tuple[int, ...], outcomes: Tensor, probs_B: Tensor, beta: float) -> float:
    """beta * log E[exp(outcome / beta)] over the reference's responses that begin with the prefix."""
    inside = [row for row, y in enumerate(RESPONSES) if y[: len(prefix)] == prefix]
    mass = sum(probs_B[row].item() for row in inside)
    return beta * math.log(
        sum(probs_B[row].item() / mass * math.exp(outcomes[row].item() / beta) for row in inside)
    )


def best_prm_BT(outcomes: Tensor, ref_BT: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the token log-probs of the PRM that is proportional to ref * exp(outcome / beta), and V of each prefix."""
    probs_B = ref_BT.sum(1).exp()
    values = [[soft_value(y[:t], outcomes, probs_B, beta) for t in range(LENGTH + 1)] for y in RESPONSES]
    values_BT1 = torch.tensor(values, dtype=torch.float64)
    tilted_B = probs_B * (outcomes / beta).exp()
    prm = []
    for y in RESPONSES:
        masses = [
            sum(tilted_B[row] for row, z in enumerate(RESPONSES) if z[:t] == y[:t]) for t in range(LENGTH + 1)
        ]
        prm.append([math.log(masses[t + 1] / masses[t]) for t in range(LENGTH)])
    return torch.tensor(prm, dtype=torch.float64), values_BT1


@pytest.mark.parametrize(("seed", "beta"), [(0, 1.0), (1, 0.5), (2, 2.0)])
def test_a_token_reward_is_the_change_of_a_value_and_its_return_a_second_outcome(seed, beta):
    """Statement 1: r_t = V(y_<=t) - V(y_<t); the undiscounted return is outcome - V(y_<t), whatever comes between."""
    ref_BT, outcomes = token_logprobs_BT(random_table(seed)), outcomes_B(seed)
    prm_BT, values_BT1 = best_prm_BT(outcomes, ref_BT, beta)
    rewards_BT = process_rewards_BT(prm_BT, ref_BT, MASK_BT, PRMConfig(beta=beta))
    torch.testing.assert_close(rewards_BT, values_BT1[:, 1:] - values_BT1[:, :-1])
    returns_BT = discounted_return_BT(rewards_BT, MASK_BT, gamma=1.0)
    torch.testing.assert_close(returns_BT, outcomes[:, None] - values_BT1[:, :-1])


@pytest.mark.parametrize("seed", range(3))
def test_the_logit_of_a_response_is_bounded_by_its_information(seed):
    """Statement 2: at most -beta * log ref(y), and on the reference's own responses at most 0 on average."""
    beta, ref_BT, prm_BT = (
        0.7,
        token_logprobs_BT(random_table(seed)),
        token_logprobs_BT(random_table(seed + 100)),
    )
    scores_B = sequence_scores_B(prm_BT, ref_BT, MASK_BT, beta)
    assert (scores_B <= -beta * ref_BT.sum(1)).all()
    probs_B = ref_BT.sum(1).exp()
    kl = (probs_B * (ref_BT - prm_BT).sum(1)).sum()
    assert (probs_B * scores_B).sum().item() == pytest.approx(-beta * kl.item())
    assert kl > 0


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01])
def test_cross_entropy_at_a_small_logit_is_reinforce_with_baseline_one_half(scale):
    """Statement 2, consequence: its gradient differs from beta * (1/2 - label) by at most beta * |logit| / 4."""
    ref_BT, outcomes = token_logprobs_BT(random_table(3)), outcomes_B(3)
    noise_BT = torch.randn(ref_BT.shape, generator=torch.Generator().manual_seed(3))
    prm_BT = (ref_BT + scale * noise_BT).requires_grad_()
    config = PRMConfig(beta=0.05)
    rows = ScoredRows.of(prm_BT, ref_BT, MASK_BT, config.beta)
    prm_loss(rows, outcomes, torch.ones_like(outcomes), config).backward()
    assert prm_BT.grad is not None
    difference_BT = prm_BT.grad - config.beta * (0.5 - outcomes)[:, None]
    bound_B1 = config.beta * rows.scores_B.detach().abs()[:, None] / 4
    assert (difference_BT.abs() <= bound_B1 + 1e-9).all()
    assert (difference_BT.abs() >= 0.9 * bound_B1).any() or scale == 1.0, "the bound is nearly reached"


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.5])
def test_the_evidence_is_in_the_tokens_behind_a_decision(noise):
    """Statement 3: a decision that succeeds by chance, then a token of the environment that tells which, with noise.

    Responses are (decision, observation). The best PRM is proportional to the reference times E[exp(outcome / beta)],
    where the success is hidden and summed over.
    """
    chance, beta = 0.6, 0.8
    worlds = list(itertools.product((0, 1), (True, False), (0, 1)))  # decision, success, observation

    def probability(success: bool, observation: int) -> float:
        told = 1 - noise if observation == int(success) else noise
        return 0.5 * (chance if success else 1 - chance) * told

    responses = list(itertools.product((0, 1), repeat=2))
    weight = {True: math.exp(1 / beta), False: 1.0}
    mass = {
        name: {
            y: sum(
                probability(s, o) * (weight[s] if name == "prm" else 1) for a, s, o in worlds if (a, o) == y
            )
            for y in responses
        }
        for name in ("prm", "ref")
    }

    def logprobs(name: str) -> Tensor:
        first = [sum(mass[name][a, o] for o in (0, 1)) for a in (0, 1)]
        rows = [[first[a] / sum(first), mass[name][a, o] / first[a]] for a, o in responses]
        return torch.tensor(rows, dtype=torch.float64).log()

    mask_BT = torch.ones(len(responses), 2, dtype=torch.bool)
    rewards_BT = process_rewards_BT(logprobs("prm"), logprobs("ref"), mask_BT, PRMConfig(beta=beta))
    torch.testing.assert_close(rewards_BT[:, 0], torch.zeros(4, dtype=torch.float64))
    agreement = 0.0
    for a, success, observation in worlds:
        behind = rewards_BT[responses.index((a, observation)), 1].item()
        says = 0.5 if abs(behind) < 1e-12 else float((behind > 0) == success)
        agreement += probability(success, observation) * says
    assert agreement == pytest.approx(1 - noise)
