"""[memory]: offloading and activation recomputation."""

from typing import Literal, Self

from pydantic import model_validator

from megatron_prime.config.section import Positive, Section


class RecomputeConfig(Section):
    """Activations that Megatron computes again in the backward pass instead of keeping them."""

    granularity: Literal["none", "selective", "full"] = "none"
    """selective recomputes `modules` inside each layer, full whole layers: the least memory, a third more compute."""
    modules: tuple[Literal["core_attn", "mlp", "moe", "layernorm"], ...] = ("core_attn", "mlp")
    """What selective recomputes."""
    method: Literal["uniform", "block"] = "uniform"
    """full: uniform recomputes all layers, num_layers at a time; block only the first num_layers of each stage."""
    num_layers: Positive = 1
    """Layers of one unit (uniform), or layers that are recomputed (block)."""

    def recomputes(self, module: str) -> bool:
        """Whether this module of each layer is recomputed by itself."""
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
    """What leaves device memory in the phases that do not need it, and what is recomputed."""

    offload_reference: bool = False
    """The reference's weights are in host memory outside the log-prob phase."""
    offload_prm: bool = False
    """The PRM's weights and optimizer states are in host memory outside its phase; its gradients are freed."""
    offload_policy_optimizer: bool = False
    """The policy's optimizer states are in host memory outside its update; its gradients are freed."""
    recompute: RecomputeConfig = RecomputeConfig()

    def offloaded_parts(self, role: str) -> frozenset[Literal["weights", "gradients", "optimizer"]]:
        """What of a role (policy, prm, reference) leaves between its uses."""
        if role == "policy" and self.offload_policy_optimizer:
            return frozenset({"gradients", "optimizer"})
        if (role == "prm" and self.offload_prm) or (role == "reference" and self.offload_reference):
            return frozenset({"weights", "gradients", "optimizer"})
        return frozenset()
