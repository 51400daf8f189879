"""The models of a run, built from its configuration: policy, PRM and reference."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from megatron_prime.algorithm.prm_objectives.value import value_tokens
from megatron_prime.config.run import PrimeConfig
from megatron_prime.hf.shape import read_shape
from megatron_prime.models.forward import ScoringSettings
from megatron_prime.parallel.topology import Topology
from megatron_prime.training.same_alignment import align_like
from megatron_prime.training.trainable import RoleSpec, Scorer, Trainable

Role = TypeVar("Role", bound=Scorer)


@dataclass(frozen=True)
class Roles:
    """The models of a run."""

    policy: Trainable
    prm: Scorer | None
    """A Trainable unless prm.update_order is none; None without a PRM, or where the policy takes its place."""
    reference: Scorer | None
    """None where no reference is needed, or where the policy before its update is the reference."""
    trained: dict[str, Trainable] = field(init=False)
    """The roles that train, by name: what a checkpoint holds."""

    def __post_init__(self) -> None:
        trained = {"policy": self.policy}
        if isinstance(self.prm, Trainable):
            trained["prm"] = self.prm
        object.__setattr__(self, "trained", trained)


def scoring_settings(config: PrimeConfig, temperature: float = 1.0) -> ScoringSettings:
    """Return how the models of a run score responses."""
    return ScoringSettings(
        max_tokens_per_microbatch=config.trainer.max_tokens_per_microbatch,
        chunk_tokens=config.trainer.logprob_chunk_tokens,
        temperature=temperature,
        kernel=config.trainer.logprob_kernel,
    )


def role_spec(config: PrimeConfig, name: str, hf_path: Path, temperature: float = 1.0) -> RoleSpec:
    """Return the spec of one role of a run."""
    scoring = scoring_settings(config, temperature)
    if name == "prm" and config.prm.is_critic:
        scoring = replace(scoring, value_tokens=value_tokens(read_shape(hf_path).vocab_size))
    return RoleSpec(name, hf_path, scoring, config.memory, config.model_options)


def build_roles(
    config: PrimeConfig, topology: Topology, load_weights: bool, load_frozen_weights: bool = True
) -> Roles:
    """Build every model that the run needs; `load_weights` is False when a checkpoint is loaded right after.

    Each is offloaded, if it is to be, before the next one is built, so that they never share the device at full size.
    The reference has no state in a checkpoint, and a PRM that is never updated has none either: both always start from
    their HF checkpoints. With `load_frozen_weights` False they have none, for a rehearsal, which needs no weights.
    """
    num_steps = config.trainer.num_steps
    spec = role_spec(config, "policy", config.model.path, config.rollout.temperature)
    policy = _parked(Trainable(spec, topology, config.policy, num_steps, load_weights))
    prm: Scorer | None = None
    if config.prm.has_model:
        spec = role_spec(config, "prm", config.prm_path)
        if config.prm.is_trained:
            prm = _parked(Trainable(spec, topology, config.prm, num_steps, load_weights))
        else:
            prm = _parked(Scorer(spec, topology, load_frozen_weights))
    reference: Scorer | None = None
    if config.has_reference_model:
        spec = role_spec(config, "reference", config.reference_path)
        reference = Scorer(spec, topology, load_frozen_weights)
        # Where no rewards are computed, the alignment does not matter.
        align_like(reference.built.module, (prm or policy).built.module)
        _parked(reference)
    return Roles(policy, prm, reference)


def build_offline_prm(
    config: PrimeConfig, topology: Topology, load_weights: bool
) -> tuple[Trainable, Scorer]:
    """Build the PRM and its reference for training on saved responses; `load_weights` as in `build_roles`."""
    settings = config.prm_training
    spec = role_spec(config, "prm", config.prm_path)
    prm = _parked(Trainable(spec, topology, settings, settings.num_steps, load_weights))
    reference = Scorer(role_spec(config, "reference", config.reference_path), topology)
    align_like(reference.built.module, prm.built.module)
    return prm, _parked(reference)


def _parked(role: Role) -> Role:
    role.residency.park()
    return role
