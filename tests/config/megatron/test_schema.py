"""`[megatron]`: fields of megatron-core by its own names, refused where another option sets them."""

import subprocess
import sys

import pytest

from megatron_prime.config import ConfigError, load_config


def load(path, text, *overrides):
    path.write_text(path.read_text() + text)
    return load_config(path, overrides)


def test_tables_and_overrides_arrive(minimal_toml):
    text = (
        "[megatron.transformer]\nattention_softmax_in_fp32 = false\n[megatron.ddp]\nbucket_size = 40000000\n"
    )
    config = load(minimal_toml, text, "megatron.optimizer.log_num_zeros_in_grad=true")
    assert config.megatron.transformer == {"attention_softmax_in_fp32": False}
    assert config.megatron.ddp == {"bucket_size": 40000000}
    assert config.megatron.optimizer == {"log_num_zeros_in_grad": True}


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (
            "megatron.ddp.buket_size=1",
            "unknown key megatron.ddp.buket_size; did you mean megatron.ddp.bucket_size?",
        ),
        (
            "megatron.transformer.num_layers=2",
            "megatron.transformer.num_layers is not passed through: it describes",
        ),
        ("megatron.transformer.tensor_model_parallel_size=2", "set parallel.tensor"),
        ("megatron.optimizer.lr=1e-3", "set policy.lr, prm.lr"),
        ("megatron.optimizer.exp_avg_dtype=float32", "takes torch.dtype, which has no TOML value"),
        ("megatron.ddp.bucket_size=many", "megatron.ddp.bucket_size = 'many': must be [int]"),
        (
            "megatron.transformer.persist_layer_norm=1",
            "megatron.transformer.persist_layer_norm = 1: must be bool",
        ),
        ("megatron.model.x=1", "unknown key megatron.model"),
    ],
)
def test_the_error_for_a_refused_field_says_what_to_set(minimal_toml, override, fault):
    with pytest.raises(ConfigError) as caught:
        load_config(minimal_toml, [override])
    assert len(caught.value.faults) == 1
    assert fault in caught.value.faults[0]


def test_the_check_imports_no_framework(minimal_toml):
    code = (
        "import sys; from pathlib import Path; from megatron_prime.config import load_config; "
        "load_config(Path(sys.argv[1]), ['megatron.ddp.bucket_size=1']); "
        "assert not {'torch', 'megatron.core'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(minimal_toml)], check=True)
