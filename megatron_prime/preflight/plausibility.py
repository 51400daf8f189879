"""Question sizes that are possible but hardly meant. A run starts all the same, after a warning."""

import math
from collections.abc import Iterator

from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.advantage import AdvantageConfig
from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.shape import read_shape
from megatron_prime.preflight.prm_training import other_scores

LARGE_HIDDEN_SIZE = 512
"""Hidden size from which on a model is no toy, whose learning rates may be large."""
LARGE_LR = 1e-4
MAX_STEPS = 100_000
MAX_RESPONSES = 1_000_000
"""Responses of a step from which on the batch is questioned."""
RANGES: tuple[tuple[str, float, float, str], ...] = (
    (
        "policy.lr",
        1e-12,
        1e-2,
        "AdamW changes each weight by about this much in every update; usual are 1e-7 to 1e-5",
    ),
    (
        "prm.lr",
        1e-12,
        1e-2,
        "AdamW changes each weight by about this much in every update; usual are 1e-7 to 1e-5",
    ),
    ("policy.kl_coef", 0, 1.0, "the KL term outweighs the rewards; usual are 0 to 0.1"),
    ("policy.entropy_coef", 0, 0.1, "the entropy bonus outweighs the rewards; usual are 0 to 0.01"),
    ("policy.weight_decay", 0, 1.0, "usual are 0 to 0.1"),
    ("prm.weight_decay", 0, 1.0, "usual are 0 to 0.1"),
    ("policy.num_epochs", 1, 10, "the policy moves far from the one that sampled; usual are 1 to 4"),
    ("policy.num_minibatches", 1, 256, "usual are 1 to 16"),
    ("rollout.group_size", 2, 256, "usual are 4 to 64; one response has nothing to be compared with"),
    ("rollout.max_staleness", 0, 8, "most of such old samples are corrected away; usual are 0 to 4"),
    ("rollout.temperature", 0.1, 2.0, "responses are all alike, or noise; usual is 1"),
    ("rollout.max_response_tokens", 8, math.inf, "almost every response would be truncated"),
    ("rollout.max_prompt_tokens", 8, math.inf, "almost every prompt would be left out"),
    ("filter.max_prompts_factor", 1, 100, "a step may sample this many times its prompts before it gives up"),
    ("reward.timeout_s", 0.05, 3600, "seconds for one verification"),
    ("reward.num_workers", 1, 1024, "processes per training process"),
    ("platform.timeout_s", 1, 1e6, "seconds until a collective counts as hung"),
)
"""Option, the smallest and the largest value that is not questioned, and a reason or what is usual."""

CLIP_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], str]] = {
    "ppo_clip": ((0.01, 0.9), (0.01, 1.0), "usual are 0.1 to 0.3"),
    "gspo": (
        (1e-5, 0.02),
        (1e-5, 0.02),
        "the ratio of a whole response is rarely that far from 1; usual are 3e-4 and 4e-4",
    ),
    "cispo": ((0.01, 1.0), (0.01, 10.0), "usual is a clip_low near 1 and a clip_high of 0.2 to 4"),
}
"""policy.loss -> the smallest and largest clip_low and clip_high that are not questioned, and what is usual."""

BETA_RANGES: dict[str, tuple[float, float, str]] = {
    "ipvrm": (0.1, 100, "usual are 1 to 20, since values are means over tokens"),
}
"""prm.loss -> the smallest and largest prm.beta that are not questioned, and what is usual; others have BETA_RANGE."""
BETA_RANGE = (1e-3, 1.0, "usual are 0.01 to 0.1")


def doubts(config: PrimeConfig, arithmetic: BatchArithmetic) -> Iterator[str]:
    """Yield a line for each option of a `train` run that is possible but hardly meant."""
    for key, low, high, reason in RANGES:
        table, name = key.split(".")
        value = getattr(getattr(config, table), name)
        if table == "prm" and not config.prm.is_trained:
            continue
        if not low <= value <= high:
            yield f"{key} = {value:g}: {reason}"
    low, high, usual = BETA_RANGES.get(config.prm.loss, BETA_RANGE)
    if config.prm.is_trained and not low <= config.prm.beta <= high:
        yield f"prm.beta = {config.prm.beta:g} with prm.loss = {config.prm.loss!r}: {usual}"
    yield from _clipping(config)
    yield from _learning_rates(config)
    yield from _steps(config, arithmetic)
    yield from _filter(config)
    if config.rollout.samples_ahead and not config.rollout.uses_servers:
        yield (
            f"rollout.max_staleness = {config.rollout.max_staleness} with rollout.engine = 'local': the training "
            "processes sample themselves, so that batches are older and no step is faster; it is meant for comparisons "
            "with servers"
        )
    if config.rollout.samples_ahead and config.policy.correction == "none":
        yield (
            f"policy.correction = 'none' with rollout.max_staleness = {config.rollout.max_staleness}: nothing corrects "
            "for the update between the weights that sample and those that train; usual is 'token'"
        )
    if config.rollout.max_staleness > 1 and config.rollout.sglang.deterministic:
        yield (
            f"rollout.sglang.deterministic = true with rollout.max_staleness = {config.rollout.max_staleness}: sampling"
            " is slower for it, but no run repeats, because timing decides which weights sample a group"
        )
    yield from _process_rewards(config)
    yield from other_scores(config)


def _clipping(config: PrimeConfig) -> Iterator[str]:
    policy = config.policy
    if policy.loss not in CLIP_RANGES:  # a user's own
        return
    *ranges, reason = CLIP_RANGES[policy.loss]
    for name, (low, high) in zip(("clip_low", "clip_high"), ranges, strict=True):
        value = getattr(policy, name)
        if not low <= value <= high:
            yield f"policy.{name} = {value:g} with policy.loss = {policy.loss!r}: {reason}"


def _learning_rates(config: PrimeConfig) -> Iterator[str]:
    for table, path in (("policy", config.model.path), ("prm", config.prm_path)):
        lr = getattr(config, table).lr
        try:
            hidden_size = read_shape(path).hidden_size
        except ModelFolderError:
            continue  # reported as a fault
        if (
            LARGE_LR < lr <= 1e-2
            and hidden_size >= LARGE_HIDDEN_SIZE
            and (table == "policy" or config.prm.is_trained)
        ):
            yield f"{table}.lr = {lr:g}: large for a model of hidden size {hidden_size}; usual are 1e-7 to 1e-5"


def _steps(config: PrimeConfig, arithmetic: BatchArithmetic) -> Iterator[str]:
    num_steps, responses = config.trainer.num_steps, arithmetic.responses_per_step
    if num_steps > MAX_STEPS:
        yield f"trainer.num_steps = {num_steps:,}: {num_steps * responses:,} responses; usual are 100 to 10,000 steps"
    if responses > MAX_RESPONSES:
        yield f"trainer.prompts_per_step * rollout.group_size = {responses:,} responses; usual are 64 to 16,000"
    save_every = config.checkpoint.save_every
    if isinstance(save_every, int) and save_every > num_steps:
        yield (
            f"checkpoint.save_every = {save_every} exceeds trainer.num_steps = {num_steps}: only the last step is saved"
        )
    if config.trainer.eval_every > num_steps:
        yield (
            f"trainer.eval_every = {config.trainer.eval_every} exceeds trainer.num_steps = {num_steps}: only the start "
            "and the end are evaluated"
        )


def _filter(config: PrimeConfig) -> Iterator[str]:
    """Question a filter that drops every group in which some responses are right and some are wrong."""
    size, low, high = config.rollout.group_size, config.filter.accuracy_min, config.filter.accuracy_max
    if not config.filter.enabled or any(low <= right / size <= high for right in range(1, size)):
        return
    yield (
        f"filter.accuracy_min = {low:g}, accuracy_max = {high:g}: with rollout.group_size = {size}, no group in which "
        "some responses are right and some wrong is kept, if rewards are 0 or 1"
    )


def _process_rewards(config: PrimeConfig) -> Iterator[str]:
    """Question process rewards that nothing restrains in groups without a right response."""
    advantage = config.advantage
    if not config.prm.enabled or advantage.process_coef == 0:
        return
    is_own_reference = config.prm_path.absolute() == config.reference_path.absolute()
    never_learns = config.prm.has_model and config.prm.update_order == "none"
    if never_learns and config.reference.mode != "policy" and is_own_reference:
        yield (
            f"prm.update_order = 'none' with {config.prm_path} as PRM and reference: a PRM that equals its reference "
            "and never learns rewards nothing; name the model that it was trained from by reference.path, or let it "
            "learn"
        )
    # What follows a decision is evidence that the policy did not write; the PRM's opinion of its own tokens is none.
    is_evidence = advantage.process_credit in ("hindsight", "observation")
    if config.filter.enabled or advantage.process_trust == "pair_accuracy" or is_evidence:
        return
    usual = AdvantageConfig()
    is_released = all(
        getattr(advantage, name) == getattr(usual, name)
        for name in ("estimator", "process_baseline", "process_normalization")
    )
    yield (
        "filter.enabled = false: a group without a right response then follows the process rewards alone, and "
        f"{'both small runs of the released estimator' if is_released else 'small runs'} have collapsed because of "
        "that; keep the filter, set advantage.process_trust = 'pair_accuracy', or credit evidence alone "
        "(advantage.process_credit)"
    )
