"""The [fp8] table: FP8 matrix products by role."""

from typing import Literal, Self

from pydantic import model_validator

from megatron_prime.config.section import NonNegative, Positive, Section

Fp8Recipe = Literal["none", "delayed", "tensorwise", "blockwise", "mxfp8"]
"""Ways to scale tensors to the range of FP8; see Fp8Config.policy."""


class Fp8Config(Section):
    """FP8 matrix products of the linear layers by Transformer Engine, by role; needs bf16 and Hopper GPUs or newer."""

    policy: Fp8Recipe = "none"
    """Recipe of the policy. tensorwise scales each tensor by its own maximum; blockwise scales blocks of 128; delayed
    scales by the maxima of previous passes; mxfp8 needs Blackwell GPUs; none, the default, computes in bf16."""
    prm: Fp8Recipe = "none"
    """Recipe of the PRM. The reference must use the same, and delayed is refused (see `reference`)."""
    reference: Fp8Recipe | None = None
    """Recipe of the reference; default that of the PRM, and no other is accepted: before the first update, process
    rewards must be exactly 0, and different recipes would make them rounding noise."""
    format: Literal["hybrid", "e4m3"] = "hybrid"
    """hybrid uses e5m2 for the gradients of activations, which have a wide range, and e4m3 elsewhere."""
    amax_history_len: Positive = 1024
    """Number of previous passes whose maxima delayed scaling uses."""
    amax_compute_algo: Literal["max", "most_recent"] = "max"
    """The statistic of those maxima that delayed scaling uses."""
    bf16_layers_at_start: NonNegative = 0
    """Number of first layers that stay in bf16; cannot be combined with delayed."""
    bf16_layers_at_end: NonNegative = 0
    """Number of last layers that stay in bf16; cannot be combined with delayed."""
    primary_weights: bool = False
    """Hold the weights of PRM and reference in FP8 only: 1 byte per weight instead of 2, and half the communication of
    a gather. fp32 master weights stay in the PRM's optimizer. The policy is excluded: its weights go to the engine
    every step."""

    def recipe_of(self, role: str) -> Fp8Recipe:
        """Return the recipe of a role."""
        if role == "policy":
            return self.policy
        if role == "prm" or self.reference is None:
            return self.prm
        return self.reference

    def has_primary_weights(self, role: str) -> bool:
        """Return whether a role's weights are held in FP8 only."""
        # The policy's weights are sent to the engine in every step from ordinary storage, which an FP8 parameter does
        # not have.
        return self.primary_weights and role != "policy" and self.recipe_of(role) != "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Scales of delayed depend on the data that a model has seen, so two models with equal weights would differ
        # (ADR 0021).
        if self.prm == "delayed" or self.reference == "delayed":
            raise ValueError(
                "'delayed' scales by what a model has seen before, which differs between PRM and reference: their "
                "log-ratio, the process reward, would hold the difference. Set prm and reference to 'tensorwise' or "
                "'blockwise'"
            )
        # The process reward is the difference of the two models' log-probs, in which only a common rounding error
        # cancels.
        if self.reference is not None and self.reference != self.prm:
            raise ValueError(
                f"reference = {self.reference!r} differs from prm = {self.prm!r}: process rewards would be rounding "
                "noise where they must be 0; leave reference out"
            )
        has_bf16_layers = self.bf16_layers_at_start or self.bf16_layers_at_end
        if self.policy == "delayed" and has_bf16_layers:
            raise ValueError(
                "bf16_layers_at_start and _at_end cannot be combined with 'delayed': use 'tensorwise'"
            )
        if self.primary_weights and self.prm == "none":
            raise ValueError(
                "primary_weights = true holds the weights of PRM and reference in FP8: set prm too"
            )
        return self
