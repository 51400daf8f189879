"""Fields of [megatron] are passed to megatron-core's classes; what these refuse is reported with its table."""

from datetime import timedelta
from importlib.util import find_spec

import pytest
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from safetensors.torch import load_file

from megatron_prime.config.megatron.schema import MegatronConfig
from megatron_prime.config.model_options import ModelOptions
from megatron_prime.config.tables.policy import PolicyConfig
from megatron_prime.models.builder import transformer_config
from megatron_prime.models.passthrough import with_passthrough
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology
from megatron_prime.training.trainable import _megatron_optimizer_config
from tests.support.hf_shapes import make_shape
from tests.support.toy_runs import Toy, finish

CPU = Platform(torch.device("cpu"), "gloo", torch.float32, timedelta(seconds=60))
ONE = Topology(CPU, 0, 1, 1, 0, 1, 0, 1, 0, False)


def options(**tables) -> ModelOptions:
    return ModelOptions(megatron=MegatronConfig(**tables))


def test_models_use_the_passed_fields():
    shape = make_shape("qwen3")
    assert transformer_config(shape, ONE).attention_softmax_in_fp32 is True
    changed = options(transformer={"attention_softmax_in_fp32": False, "moe_router_dtype": "fp64"})
    config = transformer_config(shape, ONE, options=changed)
    assert (config.attention_softmax_in_fp32, config.moe_router_dtype) == (False, "fp64")
    assert config.num_layers == shape.num_layers and config.hidden_dropout == 0.0


def test_optimizers_and_data_parallelism_use_the_passed_fields():
    role = PolicyConfig(lr=3e-6)
    optimizer = _megatron_optimizer_config(
        role, ONE, options(optimizer={"log_num_zeros_in_grad": True}), "policy"
    )
    assert (optimizer.log_num_zeros_in_grad, optimizer.lr) == (True, 3e-6)
    megatron = MegatronConfig(ddp={"bucket_size": 1000})
    ddp = with_passthrough(DistributedDataParallelConfig, megatron, grad_reduce_in_fp32=True)
    assert (ddp.bucket_size, ddp.grad_reduce_in_fp32) == (1000, True)


@pytest.mark.skipif(find_spec("transformer_engine") is not None, reason="refused without Transformer Engine")
def test_an_error_of_megatron_names_the_table():
    changed = options(transformer={"apply_rope_fusion": True})
    with pytest.raises(ValueError, match=r"\[megatron\.transformer\].*apply_rope_fusion.*refuses it"):
        transformer_config(make_shape("qwen3"), ONE, options=changed)


def test_a_run_uses_the_passed_optimizer_fields(toy: Toy, tmp_path):
    """With the option that applies weight decay to the norms of queries and keys too, exactly their weights differ."""
    arguments = (
        "train",
        "run.toml",
        "trainer.num_steps=1",
        "data.evaluation=[]",
        "policy.num_minibatches=1",
        "policy.weight_decay=0.5",
        # The option regroups the parameters, and with them the order in which the gradient norm is summed: clipping by
        # a norm that differs in its last bit would change every weight.
        "policy.grad_clip=0",
    )
    changed_keys, plain = [], {}
    for name, more in (("plain", ()), ("passed", ("megatron.optimizer.apply_wd_to_qk_layernorm=true",))):
        done = finish(toy.folder, *arguments, f"run_dir={tmp_path / name}", *more)
        assert done.returncode == 0, done.stderr
        exported = load_file(tmp_path / name / "hf" / "model.safetensors")
        changed_keys.append(
            {key for key in exported if not torch.equal(exported[key], plain.setdefault(key, exported[key]))}
        )
    assert changed_keys[0] == set()
    assert changed_keys[1] == {key for key in plain if key.endswith(("q_norm.weight", "k_norm.weight"))}
