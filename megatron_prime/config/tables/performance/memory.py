"""The [memory] table: offloading and activation recomputation."""

from typing import Literal, Self

from pydantic import model_validator

from megatron_prime.config.section import Positive, Section


class RecomputeConfig(Section):
    """Activations that Megatron recomputes in the backward pass instead of keeping them."""

    granularity: Literal["none", "selective", "full"] = "none"
    """selective recomputes `modules` of each layer; full recomputes whole layers, with the least memory and a third
    more compute; none, the default, keeps all activations."""
    modules: tuple[Literal["core_attn", "mlp", "moe", "layernorm"], ...] = ("core_attn", "mlp")
    """Modules of each layer that selective recomputes. mlp saves most; core_attn little, since fused attention keeps
    few activations."""
    method: Literal["uniform", "block"] = "uniform"
    """With full: uniform recomputes all layers, num_layers at a time; block the first num_layers of each stage."""
    num_layers: Positive = 1
    """Layers per unit of recomputation (uniform), or recomputed layers per pipeline stage (block)."""

    def recomputes(self, module: str) -> bool:
        """Return whether this module of each layer is recomputed selectively."""
        return self.granularity == "selective" and module in self.modules

    @model_validator(mode="after")
    def _check_granularity(self) -> Self:
        if self.granularity == "selective" and not self.modules:
            raise ValueError("granularity = 'selective' recomputes nothing with modules = []: name some")
        if self.granularity != "full" and (self.method, self.num_layers) != ("uniform", 1):
            raise ValueError(
                f"method and num_layers belong to granularity = 'full', but it is {self.granularity!r}: "
                "set it, or leave them out"
            )
        return self


class MemoryConfig(Section):
    """Parts that leave device memory in the phases that do not need them, and activations that are recomputed."""

    offload_reference: bool = False
    """Keep the reference's weights in host memory outside the log-prob phase."""
    offload_prm: bool = False
    """Keep the PRM's weights and optimizer states in host memory outside its phase, and free its gradients."""
    offload_policy_optimizer: bool = False
    """Keep the policy's optimizer states in host memory outside its update, and free its gradients."""
    recompute: RecomputeConfig = RecomputeConfig()
    """Activations that are recomputed in the backward pass."""

    def offloaded_parts(self, role: str) -> frozenset[Literal["weights", "gradients", "optimizer"]]:
        """Return the parts of a role (policy, prm, reference) that leave device memory between its uses."""
        # The policy's weights stay on the device: old log-probs and the weight sync read them outside the update.
        if role == "policy" and self.offload_policy_optimizer:
            return frozenset({"gradients", "optimizer"})
        if (role == "prm" and self.offload_prm) or (role == "reference" and self.offload_reference):
            return frozenset({"weights", "gradients", "optimizer"})
        return frozenset()
