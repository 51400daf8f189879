"""[fp8]: FP8 matrix products by role."""

from typing import Literal, Self

from pydantic import model_validator

from megatron_prime.config.section import NonNegative, Positive, Section

Fp8Recipe = Literal["none", "delayed", "tensorwise", "blockwise", "mxfp8"]

Role = Literal["policy", "prm", "reference"]


class Fp8Config(Section):
    """FP8 matrix products of the linear layers by Transformer Engine, by role; needs bf16 and Hopper GPUs or newer."""

    policy: Fp8Recipe = "none"
    """tensorwise scales each tensor by its own maximum, blockwise blocks of 128, delayed by maxima of past passes;
    mxfp8 is for Blackwell."""
    prm: Fp8Recipe = "none"
    """The same of the PRM; reference must have the same, and delayed is refused: see reference."""
    reference: Fp8Recipe | None = None
    """Default prm's. Another would make the process rewards noise where they must be 0, before the first update."""
    format: Literal["hybrid", "e4m3"] = "hybrid"
    """hybrid takes e5m2 for the gradients of activations, which have a wide range."""
    amax_history_len: Positive = 1024
    """Passes that delayed scaling looks back on."""
    amax_compute_algo: Literal["max", "most_recent"] = "max"
    """What delayed scaling takes of them."""
    bf16_layers_at_start: NonNegative = 0
    """First layers of the model that stay in bf16; not with delayed."""
    bf16_layers_at_end: NonNegative = 0
    """Last ones."""
    primary_weights: bool = False
    """PRM and reference hold their weights in FP8 alone (fp32 masters stay in the PRM's optimizer): 1 byte a weight
    instead of 2, and half the gather. Not the policy, whose weights go to the engine every step."""

    def recipe_of(self, role: str) -> Fp8Recipe:
        """The recipe of a role."""
        if role == "policy":
            return self.policy
        if role == "prm" or self.reference is None:
            return self.prm
        return self.reference

    def has_primary_weights(self, role: str) -> bool:
        """Whether a role's weights are held in FP8."""
        return self.primary_weights and role != "policy" and self.recipe_of(role) != "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prm == "delayed" or self.reference == "delayed":
            raise ValueError(
                "'delayed' scales by what a model has seen before, which differs between PRM and reference: their "
                "log-ratio, the process reward, would hold the difference. Set prm and reference to 'tensorwise' or "
                "'blockwise'"
            )
        if self.reference is not None and self.reference != self.prm:
            raise ValueError(
                f"reference = {self.reference!r} differs from prm = {self.prm!r}: process rewards would be rounding "
                "noise where they must be 0; leave reference out"
            )
        has_bf16_layers = self.bf16_layers_at_start or self.bf16_layers_at_end
        if self.policy == "delayed" and has_bf16_layers:
            raise ValueError(
                "bf16_layers_at_start and _at_end cannot be had with 'delayed': use 'tensorwise'"
            )
        if self.primary_weights and self.prm == "none":
            raise ValueError(
                "primary_weights = true holds the weights of PRM and reference in FP8: set prm too"
            )
        return self
