"""PRIME in one file: Algorithm 1 of arXiv 2502.01456, with torch and transformers, in a minute on an idle CPU core.

    python -m examples.prime_in_one_file

The task is a chain of arithmetic modulo 10, answered by all intermediate results. A tiny transformer first imitates a
demonstrator that makes habitual mistakes. PRIME then improves it from outcomes alone: only the last digit of a response
is verified, but every token gets a reward. The trick is the implicit process reward. A second language model, the PRM,
is trained so that

    beta * sum_t log PRM(y_t | y_<t) / reference(y_t | y_<t)

is the logit that response y is correct. Its terms then say how much each token contributed, without any label of a
step. Policy, PRM and reference all start from the same weights. At the end the file prints the rewards of some tokens.

Read from `prime_step` down. The functions below it are the paper's equations, for responses to P prompts, G each:
B = P * G rows in groups of G neighbours, T response tokens, right padded. megatron_prime.algorithm has the same
functions for batches of any form, and tests/examples/test_prime_in_one_file.py holds a whole step to them.
"""

import argparse
import copy
import random
import time

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import Optimizer
from transformers import PreTrainedModel, Qwen3ForCausalLM

from megatron_prime.quickstart import arithmetic_task as task
from megatron_prime.quickstart.arithmetic import Demonstrator, sample_problem

GROUP_SIZE = 8
PROMPTS_PER_STEP = 32
BETA = 0.05
CLIP = 0.2
ACCURACY_BAND = (0.2, 0.8)
MAX_RESPONSE_TOKENS = 10
EOS, PAD = task.VOCABULARY.index(task.EOS_TOKEN), task.VOCABULARY.index(task.PAD_TOKEN)


def prime_step(
    policy: PreTrainedModel,
    prm: PreTrainedModel,
    reference: PreTrainedModel,
    policy_optimizer: Optimizer,
    prm_optimizer: Optimizer,
    rng: random.Random,
) -> dict[str, float]:
    """Run one iteration of Algorithm 1; return its metrics."""
    # Sample G responses to each prompt from the policy, and verify their outcomes.
    problems = [sample_problem(rng) for _ in range(PROMPTS_PER_STEP)]
    prompts = torch.tensor([encode(problem.text) for problem in problems])
    prompts = prompts.repeat_interleave(GROUP_SIZE, dim=0)
    responses, mask = sample(policy, prompts)
    answers = [problem.trace()[-1] for problem in problems for _ in range(GROUP_SIZE)]
    outcomes = verify(responses, mask, answers)
    metrics = {"accuracy": outcomes.mean().item()}

    # Keep the prompts that are neither too easy nor too hard: the others teach nothing.
    keep = accuracy_filter(outcomes)
    if not keep.any():
        return metrics
    prompts, responses, mask, outcomes = prompts[keep], responses[keep], mask[keep], outcomes[keep]

    # Score the batch with the three models, before any update.
    with torch.no_grad():
        old_logprobs = response_logprobs(policy, prompts, responses)
        ref_logprobs = response_logprobs(reference, prompts, responses)

    # Update the PRM on the outcomes, then take its process rewards for this very batch.
    loss = prm_loss(response_logprobs(prm, prompts, responses), ref_logprobs, mask, outcomes)
    optimize(prm_optimizer, loss)
    metrics["prm loss"] = loss.item()
    with torch.no_grad():
        rewards = process_rewards(response_logprobs(prm, prompts, responses), ref_logprobs, mask)

    # Turn outcomes and process rewards into advantages, and update the policy.
    advantages = rloo_advantages(outcomes, rewards, mask)
    loss = policy_loss(response_logprobs(policy, prompts, responses), old_logprobs, advantages, mask)
    optimize(policy_optimizer, loss)
    return metrics


def process_rewards(prm_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return the implicit process rewards r_t = beta * log(PRM / reference) (Eq. 3), [B, T]."""
    return BETA * (prm_logprobs - ref_logprobs) * mask


def prm_loss(prm_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, outcomes: Tensor) -> Tensor:
    """Return the cross-entropy of the outcomes with sigmoid(sum_t r_t): a response's rewards add up to its logit."""
    logits = process_rewards(prm_logprobs, ref_logprobs, mask).sum(dim=1)
    return binary_cross_entropy_with_logits(logits, outcomes)


def rloo_advantages(outcomes: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """Return the advantages of outcomes and process rewards with leave-one-out baselines (Eq. 4 and 5), [B, T].

    The outcome counts for every token of its response; a process reward counts for its own token and those before it.
    """
    outcome_advantages = outcomes - leave_one_out_mean(outcomes)
    mean_rewards = rewards.sum(dim=1) / mask.sum(dim=1)
    centred = (rewards - leave_one_out_mean(mean_rewards)[:, None]) * mask
    returns = centred.flip(dims=[1]).cumsum(dim=1).flip(dims=[1])
    return (outcome_advantages[:, None] + returns) * mask


def leave_one_out_mean(values: Tensor) -> Tensor:
    """Return, for each response, the mean value of the other responses to its prompt, [B]."""
    groups = values.view(-1, GROUP_SIZE)
    return ((groups.sum(dim=1, keepdim=True) - groups) / (GROUP_SIZE - 1)).flatten()


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Return PPO's clipped loss (Eq. 6), averaged over all tokens."""
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    token_losses = -torch.minimum(ratio * advantages, clipped * advantages)
    return (token_losses * mask).sum() / mask.sum()


def accuracy_filter(outcomes: Tensor) -> Tensor:
    """Return which rows belong to a prompt whose mean outcome lies in the accuracy band, bool [B]."""
    accuracy = outcomes.view(-1, GROUP_SIZE).mean(dim=1)
    low, high = ACCURACY_BAND
    return ((accuracy >= low) & (accuracy <= high)).repeat_interleave(GROUP_SIZE)


@torch.no_grad()
def sample(policy: PreTrainedModel, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Return one response to each prompt, [B, T], and the mask of its tokens up to the end-of-sequence token."""
    sequences = policy.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        top_k=0,
        max_new_tokens=MAX_RESPONSE_TOKENS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    responses = sequences[:, prompts.shape[1] :]
    num_ends_before = (responses == EOS).cumsum(dim=1) - (responses == EOS).long()
    return responses, (num_ends_before == 0).float()


def verify(responses: Tensor, mask: Tensor, answers: list[int]) -> Tensor:
    """Return 1 for each response that ends with the right digit and the end-of-sequence token, and else 0."""
    ends = [row[: int(kept.sum())][-2:] for row, kept in zip(responses.tolist(), mask, strict=True)]
    right = [[task.VOCABULARY.index(str(answer)), EOS] for answer in answers]
    return torch.tensor([float(end == wanted) for end, wanted in zip(ends, right, strict=True)])


def response_logprobs(model: PreTrainedModel, prompts: Tensor, responses: Tensor) -> Tensor:
    """Return the log-probability of each response token, [B, T]; the model at token t predicts token t + 1."""
    logits = model(torch.cat([prompts, responses], dim=1)).logits[:, prompts.shape[1] - 1 : -1]
    return logits.log_softmax(dim=-1).gather(2, responses[:, :, None])[:, :, 0]


def optimize(optimizer: Optimizer, loss: Tensor) -> None:
    """Take one optimizer step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def show_process_rewards(prm: PreTrainedModel, reference: PreTrainedModel, rng: random.Random) -> None:
    """Print responses of the model that training started from, with the process reward of every token."""
    problems = [sample_problem(rng) for _ in range(4)]
    prompts = torch.tensor([encode(problem.text) for problem in problems])
    responses, mask = sample(reference, prompts)
    logprobs = [response_logprobs(model, prompts, responses) for model in (prm, reference)]
    for problem, row, rewards in zip(problems, responses, process_rewards(*logprobs, mask), strict=True):
        right = [*map(str, problem.trace()), task.EOS_TOKEN]
        print(f"\n{problem.text}\nright   " + "".join(f"{token:>8}" for token in right))
        print("response" + "".join(f"{task.VOCABULARY[token]:>8}" for token in row))
        print("reward  " + "".join(f"{reward:+8.3f}" for reward in rewards.tolist()))


def encode(text: str) -> list[int]:
    """Return the token ids of words separated by spaces."""
    return [task.VOCABULARY.index(word) for word in text.split()]


def warm_up(policy: PreTrainedModel, num_steps: int, rng: random.Random) -> None:
    """Imitate the demonstrator by supervised training, so that there is something to improve."""
    demonstrator = Demonstrator(seed=0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3, betas=(0.9, 0.98))
    for _ in range(num_steps):
        problems = [sample_problem(rng) for _ in range(64)]
        prompts = torch.tensor([encode(problem.text) for problem in problems])
        responses = torch.tensor([[*demonstrator.trace(problem), EOS] for problem in problems])
        optimize(optimizer, -response_logprobs(policy, prompts, responses).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="PRIME on a small arithmetic task.")
    parser.add_argument("--warm-up-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng, started = random.Random(0), time.monotonic()
    policy = Qwen3ForCausalLM(task.model_config())
    warm_up(policy, options.warm_up_steps, rng)
    print(f"warmed up in {time.monotonic() - started:.0f} s")
    prm, reference = copy.deepcopy(policy), copy.deepcopy(policy)
    policy_optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4, weight_decay=0.0)
    prm_optimizer = torch.optim.AdamW(prm.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(1, options.steps + 1):
        metrics = prime_step(policy, prm, reference, policy_optimizer, prm_optimizer, rng)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        print(f"step {step}/{options.steps}  {shown}  {time.monotonic() - started:.0f} s", flush=True)
    show_process_rewards(prm, reference, rng)


if __name__ == "__main__":
    main()
