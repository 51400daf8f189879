"""Functions that every rank runs in the conversion tests: loading and saving checkpoints with Megatron."""

from megatron.core import dist_checkpointing

from megatron_prime.models.builder import build_model
from tests.support.layout_worker import topology_of, weight_blocks

DENSE = ("qwen2 tied", "qwen3", "llama rope")
MOE = ("qwen3 moe", "qwen3 moe mixed", "mixtral")
LOADED = {"tp2": DENSE, "pp2 vpp2": DENSE, "ep2": MOE, "pp2": ("qwen3 moe",), "dp2": ("mixtral",)}
SAVED = {"tp2": DENSE, "tp2+sp etp2": MOE}


def load_and_save(hf_root, converted, saved_root):
    """Load converted checkpoints in several layouts, and save HF models with Megatron on two ranks."""
    report = {}
    for layout, names in LOADED.items():
        topology = topology_of(layout)
        for name in names:
            report[layout, name] = weight_blocks(build_model(converted / name, topology), topology)
    for layout, names in SAVED.items():
        topology = topology_of(layout)
        for name in names:
            built = build_model(hf_root / name, topology)
            if topology.rank == 0:
                (saved_root / name).mkdir()
            dist_checkpointing.save({"model": built.chunks[0].sharded_state_dict()}, str(saved_root / name))
    return report
