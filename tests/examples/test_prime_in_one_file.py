"""The example agrees with the package on a step's rewards, advantages and losses, and runs."""

import copy
import random

import pytest
import torch
from transformers import Qwen3ForCausalLM

from examples import prime_in_one_file as example
from megatron_prime.algorithm.advantage import prime_advantages
from megatron_prime.algorithm.filtering import is_in_accuracy_band
from megatron_prime.algorithm.implicit_reward import process_rewards_BT
from megatron_prime.algorithm.policy_loss import aggregation_weights_BT, policy_loss
from megatron_prime.algorithm.prm_loss import prm_loss
from megatron_prime.algorithm.prm_rows import ScoredRows
from megatron_prime.config.tables.advantage import AdvantageConfig
from megatron_prime.config.tables.policy import PolicyConfig
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.quickstart.arithmetic import sample_problem
from megatron_prime.quickstart.arithmetic_task import model_config

PAPER = AdvantageConfig(process_baseline="token_mean", process_normalization="none", whitening="none")
PRM = PRMConfig(beta=example.BETA)
CLIPPED = PolicyConfig(clip_low=example.CLIP, clip_high=example.CLIP)


@pytest.fixture(scope="module")
def step() -> dict[str, torch.Tensor]:
    """Return sampled responses of a small batch, random outcomes, and log-probs of four models."""
    torch.manual_seed(3)
    policy = Qwen3ForCausalLM(model_config())
    rng = random.Random(3)
    prompts = torch.tensor([example.encode(sample_problem(rng).text) for _ in range(4)])
    prompts = prompts.repeat_interleave(example.GROUP_SIZE, dim=0)
    responses, mask = example.sample(policy, prompts)
    moved = [copy.deepcopy(policy) for _ in range(3)]
    with torch.no_grad():
        for model in moved:
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        logprobs = [example.response_logprobs(model, prompts, responses) for model in (policy, *moved)]
    num_rows = len(responses)
    return {
        "mask": mask,
        "outcomes": (torch.rand(num_rows) < 0.4).float(),
        "group_ids": torch.arange(num_rows) // example.GROUP_SIZE,
        **dict(zip(("policy", "old", "prm", "ref"), logprobs, strict=True)),
    }


def test_responses_have_several_lengths(step):
    lengths = step["mask"].sum(dim=1)
    assert lengths.min() >= 1
    assert len(lengths.unique()) > 1


def test_process_rewards_and_the_prm_loss_agree(step):
    arguments = (step["prm"], step["ref"], step["mask"])
    torch.testing.assert_close(example.process_rewards(*arguments), process_rewards_BT(*arguments, PRM))
    rows = ScoredRows.of(*arguments, PRM.beta)
    weights_B = torch.full((rows.num_rows,), 1 / rows.num_rows)
    torch.testing.assert_close(
        example.prm_loss(*arguments, step["outcomes"]), prm_loss(rows, step["outcomes"], weights_B, PRM)
    )


def test_advantages_agree(step):
    rewards_BT = example.process_rewards(step["prm"], step["ref"], step["mask"])
    ours_BT = example.rloo_advantages(step["outcomes"], rewards_BT, step["mask"])
    package_BT = prime_advantages(step["outcomes"], rewards_BT, step["mask"], step["group_ids"], PAPER)
    assert rewards_BT.any()
    torch.testing.assert_close(ours_BT, package_BT)


def test_policy_losses_and_their_gradients_agree(step):
    advantages_BT = torch.randn_like(step["mask"])
    gradients, losses = [], []
    for compute in (
        lambda logprobs: example.policy_loss(logprobs, step["old"], advantages_BT, step["mask"]),
        lambda logprobs: policy_loss(
            logprobs,
            step["old"],
            advantages_BT,
            aggregation_weights_BT(step["mask"], "token"),
            CLIPPED,
        )[0],
    ):
        logprobs = step["policy"].clone().requires_grad_()
        losses.append(compute(logprobs))
        gradients.append(torch.autograd.grad(losses[-1], logprobs)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def models_and_optimizers() -> tuple[list[Qwen3ForCausalLM], list[torch.optim.Optimizer]]:
    """Return policy, PRM and reference, equal at first, and optimizers of policy and PRM whose updates are large."""
    torch.manual_seed(5)
    policy = Qwen3ForCausalLM(model_config())
    models = [policy, copy.deepcopy(policy), copy.deepcopy(policy)]
    return models, [
        torch.optim.SGD(model.parameters(), lr=lr) for model, lr in zip(models, (0.1, 20.0), strict=False)
    ]


def kept_rows(outcomes_B: torch.Tensor) -> torch.Tensor:
    """Return the rows of the groups that the package's filter keeps."""
    groups = outcomes_B.view(-1, example.GROUP_SIZE).tolist()
    kept = torch.tensor([is_in_accuracy_band(group, *example.ACCURACY_BAND) for group in groups])
    return kept.repeat_interleave(example.GROUP_SIZE)


def package_step(models: list[Qwen3ForCausalLM], optimizers: list[torch.optim.Optimizer]) -> None:
    """Take the step of `prime_step` with the package's functions; sampling and verification are the example's."""
    policy, prm, reference = models
    rng = random.Random(7)
    problems = [sample_problem(rng) for _ in range(example.PROMPTS_PER_STEP)]
    prompts = torch.tensor([example.encode(problem.text) for problem in problems])
    prompts = prompts.repeat_interleave(example.GROUP_SIZE, dim=0)
    responses, mask = example.sample(policy, prompts)
    answers = [problem.trace()[-1] for problem in problems for _ in range(example.GROUP_SIZE)]
    outcomes_B, group_ids_B = example.verify(responses, mask, answers), torch.arange(len(responses))
    group_ids_B //= example.GROUP_SIZE
    keep_B = kept_rows(outcomes_B)
    assert 0 < keep_B.sum() < len(keep_B)
    outcomes_B, group_ids_B, mask_BT = outcomes_B[keep_B], group_ids_B[keep_B], mask[keep_B]

    def logprobs(model: Qwen3ForCausalLM) -> torch.Tensor:
        return example.response_logprobs(model, prompts[keep_B], responses[keep_B])

    with torch.no_grad():
        old_BT, ref_BT = logprobs(policy), logprobs(reference)
    rows = ScoredRows.of(logprobs(prm), ref_BT, mask_BT, PRM.beta)
    prm_loss(rows, outcomes_B, torch.full((rows.num_rows,), 1 / rows.num_rows), PRM).backward()
    optimizers[1].step()
    rewards_BT = process_rewards_BT(logprobs(prm), ref_BT, mask_BT, PRM)
    assert rewards_BT.abs().max() > 0.01
    advantages_BT = prime_advantages(outcomes_B, rewards_BT, mask_BT, group_ids_B, PAPER)
    weights_BT = aggregation_weights_BT(mask_BT, "token")
    policy_loss(logprobs(policy), old_BT, advantages_BT, weights_BT, CLIPPED)[0].backward()
    optimizers[0].step()


def test_a_whole_step_changes_policy_and_prm_alike(monkeypatch):
    monkeypatch.setattr(example, "PROMPTS_PER_STEP", 8)
    monkeypatch.setattr(example, "verify", lambda responses, *_: (responses[:, 0] < 5).float())
    results = []
    for take_step in (
        lambda models, optimizers: example.prime_step(*models, *optimizers, random.Random(7)),
        package_step,
    ):
        models, optimizers = models_and_optimizers()
        torch.manual_seed(11)
        take_step(models, optimizers)
        results.append([[*model.state_dict().values()] for model in models])
    for role in range(3):
        torch.testing.assert_close(results[0][role], results[1][role])
    policy, prm, reference = results[0]
    assert all(not torch.equal(a, b) for a, b in ((policy[0], reference[0]), (prm[0], reference[0])))


def test_the_accuracy_filters_agree(step):
    assert torch.equal(example.accuracy_filter(step["outcomes"]), kept_rows(step["outcomes"]))


def test_a_verified_response_ends_with_the_right_digit():
    responses = torch.tensor(
        [example.encode("1 2 <eos>"), example.encode("2 1 <eos>"), example.encode("1 2 2")]
    )
    assert example.verify(responses, torch.ones(3, 3), [2, 2, 2]).tolist() == [1.0, 0.0, 0.0]


def test_the_example_runs(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prime_in_one_file", "--warm-up-steps", "1", "--steps", "1"])
    monkeypatch.setattr(example, "ACCURACY_BAND", (0.0, 1.0))
    monkeypatch.setattr(example, "PROMPTS_PER_STEP", 2)
    example.main()
    printed = capsys.readouterr().out
    assert "step 1/1  accuracy " in printed
    assert "prm loss 0.693" in printed, "the PRM starts as the reference"
    assert printed.count("\nreward   ") == 4, "the process rewards of four responses"
