"""Checks that the named estimator, PRM objective and policy loss exist, and that the run has what they require."""

from collections.abc import Iterator

from megatron_prime.algorithm.registry import (
    ESTIMATORS,
    POLICY_LOSSES,
    PRM_OBJECTIVES,
    Registry,
    Requirements,
)
from megatron_prime.config.run import PrimeConfig


def algorithm_faults(config: PrimeConfig) -> Iterator[str]:
    """Yield a line for each name that is unknown and for each requirement that the run does not fulfil."""
    named: list[tuple[Registry, str]] = [
        (ESTIMATORS, config.advantage.estimator),
        (POLICY_LOSSES, config.policy.loss),
    ]
    if config.prm.enabled:
        named.append((PRM_OBJECTIVES, config.prm.loss))
    faults = [fault for registry, spec in named for fault in registry.faults(spec)]
    yield from faults
    if faults or _fulfils_everything(config):
        return
    for registry, spec in named:
        requires = getattr(registry.load(spec), "requires", Requirements())
        yield from (f"{registry.option} = {spec!r} {fault}" for fault in _unfulfilled(requires, config))


def _fulfils_everything(config: PrimeConfig) -> bool:
    """Return whether no requirement can fail: loading the classes would then import torch for nothing."""
    everything = Requirements(group=True, prm=True, undiscounted_process=True)
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
