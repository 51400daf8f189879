"""The models and layouts of the resharding benchmark, and the bytes of their plans relative to the lower bound."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from megatron_prime.hf.mapping import ModelShape
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard
from megatron_prime.resharding.summary import summary

# Sizes as in the models' published config.json.
LLAMA_70B = ModelShape("llama", 80, 8192, 28672, 64, 8, 128, 128256, 131072, 1e-5)
QWEN3_235B = ModelShape(
    "qwen3_moe",
    num_layers=94,
    hidden_size=4096,
    ffn_hidden_size=12288,
    num_attention_heads=64,
    num_query_groups=4,
    head_dim=128,
    vocab_size=151936,
    max_position_embeddings=40960,
    rms_norm_eps=1e-6,
    qk_norm=True,
    num_experts=128,
    num_experts_per_tok=8,
    moe_ffn_hidden_size=1536,
)
# Sizes similar to the largest open mixtures of experts, with grouped-query attention.
MOE_1T = ModelShape(
    "qwen3_moe",
    num_layers=61,
    hidden_size=7168,
    ffn_hidden_size=18432,
    num_attention_heads=64,
    num_query_groups=8,
    head_dim=128,
    vocab_size=129280,
    max_position_embeddings=131072,
    rms_norm_eps=1e-6,
    qk_norm=True,
    num_experts=384,
    num_experts_per_tok=8,
    moe_ffn_hidden_size=2048,
)


@dataclass(frozen=True)
class Case:
    """A model in a training layout, and the engines that its weights are sent to."""

    name: str
    shape: ModelShape
    training: TrainingLayout
    engines: EngineLayout

    @property
    def is_colocated(self) -> bool:
        """True if the engines run on training ranks."""
        return self.engines.ranks[0][0] < self.training.num_ranks

    @property
    def num_gpus(self) -> int:
        """Number of GPUs of trainer and engines together."""
        return max(self.training.num_ranks, 1 + max(map(max, self.engines.ranks)))


def grid(quick: bool) -> Iterator[Case]:
    """Yield layouts of a dense model and of a mixture of experts, with engines on the training ranks and on others."""
    dense = [
        TrainingLayout(tp=tp, pp=pp, vpp=vpp, dp=dp)
        for tp, (pp, vpp), dp in product((1, 2, 4, 8), ((1, 1), (4, 1), (4, 2)), (1, 4))
    ]
    mixtures = [
        TrainingLayout(tp=tp, pp=pp, dp=16, ep=ep, etp=etp)
        for tp, pp, (ep, etp) in product((1, 4), (1, 2), ((1, 1), (4, 2), (8, 1), (16, 1)))
    ]
    for name, shape, layouts, sizes in (
        ("Llama-70B", LLAMA_70B, dense, ((1, 1, 1), (2, 8, 1), (4, 4, 1))),
        ("Qwen3-235B", QWEN3_235B, mixtures, ((1, 8, 1), (2, 8, 8), (2, 4, 2))),
    ):
        # --quick takes every third layout.
        for training, (num_engines, tp, ep) in product(layouts[:: 3 if quick else 1], sizes):
            for first_rank in (0, training.num_ranks):
                engines = EngineLayout.consecutive(num_engines, tp, ep=ep, first_rank=first_rank)
                yield Case(name, shape, training, engines)


def bytes_over_lower_bound(cases: Iterator[Case]) -> dict[str, dict[str, float]]:
    """Return, by model, the number of layouts and the largest ratio of bytes sent to the minimum possible."""
    found: dict[str, dict[str, float]] = {}
    for case in cases:
        counted = summary(plan_reshard(case.shape, case.training, case.engines, ranks_per_node=8))
        entry = found.setdefault(case.name, {"layouts": 0, "worst_ratio": 1.0, "layouts_without_network": 0})
        entry["layouts"] += 1
        if counted.lower_bound_bytes:
            entry["worst_ratio"] = max(
                entry["worst_ratio"], counted.network_bytes / counted.lower_bound_bytes
            )
        else:
            assert counted.network_bytes == 0
            entry["layouts_without_network"] += 1
    return found
