"""SGLang's routed experts are parsed, and anything implausible is refused."""

import base64
import json

import numpy as np
import pytest
import torch

from megatron_prime.engines.sglang.routing import RoutingReader
from megatron_prime.hf.mapping import ModelShape

CONFIG = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 3,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 37,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "num_experts": 300,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "norm_topk_prob": True,
    "mlp_only_layers": [1],
}
EXPERTS = np.array([[[0, 299], [7, 7], [4, 5]], [[3, 1], [-1, 999], [298, 0]]], dtype=np.int32)
"""Two tokens; layer 1 has no experts, and holds rubbish."""


def meta(experts=EXPERTS):
    return {"routed_experts": base64.b64encode(np.ascontiguousarray(experts).tobytes()).decode()}


def reader(**changes):
    return RoutingReader(ModelShape.from_hf_config(CONFIG | changes))


def test_experts_are_read_by_token_and_layer():
    experts = reader().read(meta(), num_tokens=3)
    assert experts.dtype == torch.int16
    assert torch.equal(experts[:, [0, 2]].long(), torch.from_numpy(EXPERTS[:, [0, 2]]).long())


def test_few_experts_take_a_byte_each():
    experts = reader(num_experts=256).read(meta(EXPERTS % 256), num_tokens=3)
    assert experts.dtype == torch.uint8
    assert experts[0, 0].tolist() == [0, 43]


def with_(place, value):
    experts = EXPERTS.copy()
    experts[place] = value
    return experts


@pytest.mark.parametrize(
    ("experts", "num_tokens", "words"),
    [
        (EXPERTS, 4, r"12 routed experts, \(3, 3, 2\) are needed"),
        (with_((1, 2, 0), 300), 3, r"outside \[0, 300\)"),
        (with_((0, 0, 0), -1), 3, r"outside \[0, 300\)"),
        (with_((0, 0, 0), 299), 3, "name one twice"),
    ],
)
def test_impossible_experts_are_refused(experts, num_tokens, words):
    with pytest.raises(ValueError, match=words):
        reader().read(meta(experts), num_tokens)


def test_a_dense_model_is_refused(tmp_path):
    dense = CONFIG | {"model_type": "qwen3"}
    (tmp_path / "config.json").write_text(json.dumps(dense))
    with pytest.raises(ValueError, match="routing_replay needs a mixture of experts"):
        RoutingReader.of(tmp_path)


def test_a_folder_without_config_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        RoutingReader.of(tmp_path)
