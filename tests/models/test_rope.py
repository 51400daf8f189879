"""Rotations of queries and keys are those of transformers, bit for bit, to the end of a context of 128k tokens."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from transformers import AutoConfig
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from megatron_prime.hf.shape import ModelShape
from megatron_prime.models.rope import set_frequencies, softmax_scale

POSITIONS = 131072
CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 100,
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": POSITIONS,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SETTINGS = {
    "unscaled": {"rope_theta": 1e6},
    "linear": {"rope_theta": 1e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "Llama 3.1": {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    "Qwen's YaRN": {"rope_theta": 1e6, "rope_scaling": YARN},
    "YaRN as transformers 5 writes it": {"rope_parameters": YARN | {"rope_theta": 1e6}},
    "YaRN with other bounds": {
        "rope_theta": 1e4,
        "rope_scaling": YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False},
    },
    "YaRN with an attention factor": {"rope_theta": 1e6, "rope_scaling": YARN | {"attention_factor": 1.2}},
    "DeepSeek's YaRN": {
        "rope_theta": 1e4,
        "rope_scaling": YARN | {"factor": 40, "mscale": 1.0, "mscale_all_dim": 0.707},
    },
    "YaRN without the original context": {
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_rotation_is_that_of_transformers(name):
    config = CONFIG | SETTINGS[name]
    theirs = Qwen3RotaryEmbedding(AutoConfig.for_model(**copy.deepcopy(config)))
    shape = ModelShape.from_hf_config(config)
    ours = RotaryEmbedding(
        shape.head_dim, 1.0, use_cpu_initialization=True, cp_group=SimpleNamespace(size=lambda: 1)
    )
    set_frequencies(ours, shape)
    assert torch.equal(ours.inv_freq, theirs.inv_freq)
    angles = ours.get_freqs_non_repeated(POSITIONS).repeat(1, 2)
    for part in (slice(0, 100), slice(32700, 32800), slice(POSITIONS - 100, POSITIONS)):
        cos, sin = theirs(torch.zeros(1), torch.arange(POSITIONS)[None, part])
        assert torch.equal(angles[part].cos() * theirs.attention_scaling, cos[0])
        assert torch.equal(angles[part].sin() * theirs.attention_scaling, sin[0])
    factor = theirs.attention_scaling**2 / math.sqrt(shape.head_dim)
    assert (softmax_scale(shape) or 1 / math.sqrt(shape.head_dim)) == pytest.approx(factor, rel=1e-12)
