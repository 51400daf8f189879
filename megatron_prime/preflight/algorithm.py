"""Checks that the named estimator, PRM objective and policy loss exist, and that the run has what they require."""

from collections.abc import Iterator

from megatron_prime.algorithm.registry import (
    ESTIMATORS,
    IMPORTANCE_RATIOS,
    POLICY_LOSSES,
    PRM_OBJECTIVES,
    Registry,
    Requirements,
)
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.advantage import AdvantageConfig
from megatron_prime.config.tables.policy import NO_CORRECTION
from megatron_prime.config.tables.prm import VALUE, PRMConfig


def algorithm_faults(config: PrimeConfig) -> Iterator[str]:
    """Yield a line for each name that is unknown and for each requirement that the run does not fulfil."""
    named: list[tuple[Registry, str]] = [
        (ESTIMATORS, config.advantage.estimator),
        (POLICY_LOSSES, config.policy.loss),
    ]
    if config.policy.correction not in NO_CORRECTION:
        named.append((IMPORTANCE_RATIOS, config.policy.correction))
    if config.prm.has_model:
        named.append((PRM_OBJECTIVES, config.prm.loss))
    faults = [fault for registry, spec in named for fault in registry.faults(spec)]
    yield from faults
    yield from _sampling_faults(config)
    if config.prm.enabled:
        yield from _granularity_faults(config)
        yield from _credit_faults(config)
    if config.prm.is_critic:
        yield from _critic_faults(config)
    if faults or _fulfils_everything(config):
        return
    for registry, spec in named:
        requires = getattr(registry.load(spec), "requires", Requirements())
        yield from (f"{registry.option} = {spec!r} {fault}" for fault in _unfulfilled(requires, config))


def scored_tokens_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield why the tokens that `prm.scored_tokens` names do not exist where a command scores with the PRM."""
    if config.prm.scored_tokens != "environment":
        return
    option = "prm.scored_tokens = 'environment' scores the replies of an environment, but"
    fix = "take 'all' or 'policy'"
    if command == "train" and config.prm.enabled:
        if not config.environment.is_multi_turn:
            yield f"{option} environment.name = 'single_turn' never replies: name an environment, or {fix}"
        if config.prm.probe is not None:
            yield f"{option} the solutions of prm.probe have none: leave the probe out, or {fix}"
    if command == "evaluate_prm" and (config.prm_evaluation.processbench or config.prm_evaluation.pairs):
        yield f"{option} prm_evaluation.processbench and pairs have none: name responses alone, or {fix}"
    if command == "serve_prm":
        yield f"{option} requests have none: {fix}"


def critic_command_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield why a command that works with log-ratios cannot take a critic."""
    if command in ("train_prm", "evaluate_prm", "serve_prm") and config.prm.loss == VALUE:
        name = command.replace("evaluate_prm", "eval_prm").replace("_", "-")
        yield (
            f"prm.loss = 'value' is a critic, which learns within `train`, and {name} works with log-ratios of a PRM "
            "and its reference: name another objective"
        )


def objective_faults(config: PrimeConfig) -> Iterator[str]:
    """Yield why the PRM's objective cannot be used for training on saved responses."""
    spec = config.prm.loss
    faults = [*PRM_OBJECTIVES.faults(spec)]
    yield from faults
    # The default needs nothing, and loading it would import torch.
    if not faults and spec != PRMConfig().loss:
        requires = Requirements(units=PRM_OBJECTIVES.load(spec).requires.units)
        yield from (f"prm.loss = {spec!r} {fault}" for fault in _unfulfilled(requires, config))


def _sampling_faults(config: PrimeConfig) -> Iterator[str]:
    """Yield why the log-probs of the sampled tokens would not be those of the distribution that they came from."""
    if config.rollout.top_p < 1:
        yield (
            f"rollout.top_p = {config.rollout.top_p}: engines and trainer compute the probabilities of the whole "
            "distribution, and training would take tokens for its samples that come from a part of it. Set 1 (and keep "
            "evaluation.top_p, which training does not depend on)"
        )


def _fulfils_everything(config: PrimeConfig) -> bool:
    """Return whether no requirement can fail: loading the classes would then import torch for nothing."""
    # The defaults are known not to need what most runs do not have.
    is_default = config.advantage.estimator == AdvantageConfig().estimator
    has_default_loss = config.prm.loss == PRMConfig().loss
    everything = Requirements(
        group=True,
        prm=True,
        undiscounted_process=True,
        own_credit=True,
        units=not has_default_loss,
        value_differences=not is_default or not has_default_loss,
        critic=not is_default,
        tokens=not is_default,
        turns=not is_default,
    )
    return not any(_unfulfilled(everything, config))


def _unfulfilled(requires: Requirements, config: PrimeConfig) -> Iterator[str]:
    if requires.group and config.rollout.group_size == 1:
        yield (
            "compares the responses of a group: set rollout.group_size to 2 or more, or name one that does not, such "
            "as advantage.estimator = 'reinforce' or prm.loss = 'ce'"
        )
    if requires.prm and not config.prm.enabled:
        yield "needs the PRM: set prm.enabled = true"
    if requires.undiscounted_process and config.advantage.gamma_process != 1.0:
        yield f"needs advantage.gamma_process = 1, not {config.advantage.gamma_process}: its value is a plain sum"
    if requires.own_credit and config.advantage.process_credit != "own":
        yield (
            "needs advantage.process_credit = 'own': its value of a token would contain the reward of that very token"
        )
    if requires.value_differences:
        yield from _value_faults(config.advantage)
    if requires.critic and not config.prm.is_critic:
        yield f"needs a critic: set prm.loss = 'value', not {config.prm.loss!r}, or take 'prm_gae'"
    if requires.tokens and config.prm.granularity != "token":
        yield f"compares tokens: set prm.granularity = 'token', not {config.prm.granularity!r}"
    if requires.units and config.prm.granularity not in ("step", "turn"):
        yield (
            "compares steps or turns: set prm.granularity = 'step', or 'turn' with an environment, so that responses "
            "are divided into them"
        )
    if requires.turns and config.prm.enabled and config.prm.granularity != "turn":
        yield "normalizes the rewards of turns: set prm.granularity = 'turn', with an environment"


def _value_faults(advantage: AdvantageConfig) -> Iterator[str]:
    """Yield what keeps outcomes and differences of values from adding up to one advantage."""
    if advantage.process_credit != "td":
        yield (
            f"needs advantage.process_credit = 'td', not {advantage.process_credit!r}: it adds up changes of a value"
        )
    if advantage.gamma_process != advantage.gamma_outcome:
        yield (
            f"has one lambda: set advantage.gamma_outcome = {advantage.gamma_outcome} and gamma_process = "
            f"{advantage.gamma_process} alike"
        )
    if advantage.process_normalization != "none":
        yield (
            "subtracts values from outcomes, so both need one scale: set advantage.process_normalization = 'none', not "
            f"{advantage.process_normalization!r}"
        )
    if advantage.whitening == "per_source":
        yield (
            "subtracts values from outcomes, so both need one scale: set advantage.whitening to 'joint' or 'none', not "
            "'per_source'"
        )


def _critic_faults(config: PrimeConfig) -> Iterator[str]:
    """Yield what does not go with a critic."""
    option = "prm.loss = 'value' trains a critic,"
    estimator, trust = config.advantage.estimator, config.advantage.process_trust
    if estimator != "gae" and estimator in ESTIMATORS.names():
        yield f"{option} whose values are baselines: set advantage.estimator = 'gae', not {estimator!r}"
    if trust != "full":
        yield (
            f"{option} whose changes of the value add up to the same for all responses to a prompt, so that "
            f"advantage.process_trust = {trust!r} could not tell a good one: set 'full'"
        )
    if config.prm.scored_tokens == "environment":
        yield (
            f"{option} which needs a value before every token that the policy writes: set prm.scored_tokens = 'all' or "
            "'policy'"
        )
    if config.prm.probe is not None:
        yield f"{option} and prm.probe measures log-ratios: leave it out"


def _granularity_faults(config: PrimeConfig) -> Iterator[str]:
    """Yield why process rewards cannot have the granularity of the run."""
    granularity = config.prm.granularity
    if granularity == "turn" and not config.environment.is_multi_turn:
        yield (
            "prm.granularity = 'turn': with environment.name = 'single_turn' a response is one turn. Name an "
            "environment, or take 'step' or 'whole'"
        )


def _credit_faults(config: PrimeConfig) -> Iterator[str]:
    """Yield why process rewards cannot be credited as the run says."""
    credit, granularity = config.advantage.process_credit, config.prm.granularity
    option = f"advantage.process_credit = {credit!r}"
    if credit == "hindsight" and granularity == "whole":
        yield (
            f"{option} credits a unit with what follows it, and nothing follows the one "
            "of prm.granularity = 'whole': take 'token', 'step' or 'turn', or process_credit = 'own'"
        )
    if credit == "min" and granularity == "whole":
        yield (
            f"{option} compares the rewards of a response, and prm.granularity = 'whole' has one: take 'token', 'step' "
            "or 'turn', or process_credit = 'own'"
        )
    if credit == "td" and config.prm.source == "policy":
        yield (
            f"{option} takes what a PRM says as a probability, and with prm.source = 'policy' nothing is trained to be "
            "one: set prm.source = 'model'"
        )
    if credit == "td" and config.prm.reward_scale != "beta":
        yield f"{option} takes differences of probabilities, which have no scale: leave prm.reward_scale out"
    if credit == "observation" and not config.environment.is_multi_turn:
        yield (
            f"{option} rewards the replies of an environment, but environment.name = 'single_turn' never replies: name "
            "an environment, or take 'own'"
        )
    if credit == "observation" and config.prm.scored_tokens == "policy":
        yield f"{option} rewards the replies of an environment: set prm.scored_tokens = 'all' or 'environment'"
