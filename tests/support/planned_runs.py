"""The config.json of public models, and runs to plan with them."""

import json

from megatron_prime.config.run import PrimeConfig
from megatron_prime.planning.gpus import KNOWN
from megatron_prime.planning.planned_run import read_planned_run

QWEN = {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "tie_word_embeddings": False}


def _dense(family, hidden, ffn, layers, heads, kv, vocab):
    return QWEN | {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
    }


def _moe(hidden, layers, heads, expert_ffn):
    return _dense("qwen3_moe", hidden, 4 * hidden, layers, heads, 4, 151936) | {
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": expert_ffn,
        "norm_topk_prob": True,
    }


PUBLIC = {
    "Llama-3-70B": _dense("llama", 8192, 28672, 80, 64, 8, 128256),
    "Qwen2.5-7B": _dense("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "Qwen2.5-32B": _dense("qwen2", 5120, 27648, 64, 40, 8, 152064),
    "Qwen2.5-72B": _dense("qwen2", 8192, 29568, 80, 64, 8, 152064),
    "Qwen3-30B-A3B": _moe(2048, 48, 32, 768),
    "Qwen3-235B-A22B": _moe(4096, 94, 64, 1536),
}


def write_model(folder, name):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(PUBLIC[name]))
    return folder


def make_run(folder, model="Qwen2.5-7B", processes=8, gpu="H100-80G", **sections):
    """Return a run of one public model; `sections` replace whole sections of its configuration."""
    config = {
        "run_dir": "unused",
        "model": {"path": write_model(folder / model, model)},
        "platform": {"device": "cuda", "dtype": "bf16"},
        "trainer": {"num_steps": 1},
        "policy": {"num_minibatches": 4},
        "prm": {"num_minibatches": 4},
        "rollout": {"engine": "sglang", "sglang": {"colocated": True, "num_servers": processes}},
    }
    return read_planned_run(PrimeConfig.model_validate(config | sections), processes, KNOWN[gpu])
