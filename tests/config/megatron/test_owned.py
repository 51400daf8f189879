"""Every field of megatron-core is either passed through or owned: a new release must not add to them unseen."""

import re

import pytest

from megatron_prime.config.faults import dotted_keys
from megatron_prime.config.megatron.fields import is_settable, megatron_fields
from megatron_prime.config.megatron.owned import OWNED
from megatron_prime.config.run import PrimeConfig

PASSED_THROUGH = {
    "transformer": (
        "apply_rope_fusion async_tensor_model_parallel_allreduce attention_softmax_in_fp32 barrier_with_L1_time "
        "batch_p2p_sync bias_activation_fusion bias_dropout_fusion clone_scatter_output_in_embedding "
        "config_logger_dir deterministic_mode disable_bf16_reduced_precision_matmul fused_single_qkv_rope "
        "gradient_accumulation_fusion masked_softmax_fusion memory_efficient_layer_norm moe_per_layer_logging "
        "moe_permute_fusion moe_router_dtype moe_router_fusion persist_layer_norm "
        "pipeline_model_parallel_comm_backend use_ring_exchange_p2p"
    ),
    "optimizer": (
        "apply_wd_to_qk_layernorm barrier_with_L1_time config_logger_dir log_num_zeros_in_grad "
        "store_param_remainders use_precision_aware_optimizer"
    ),
    "ddp": (
        "bucket_size disable_symmetric_registration nccl_ub pad_buckets_for_high_nccl_busbw "
        "reduce_scatter_with_fp32_accumulation"
    ),
}


@pytest.mark.parametrize("table", OWNED)
def test_every_field_is_passed_through_or_has_a_reason(table):
    fields = megatron_fields(table)
    assert set(OWNED[table]) <= set(fields), "fields that megatron-core does not have"
    passed = {name for name in fields if name not in OWNED[table] and is_settable(fields[name])}
    assert sorted(passed) == PASSED_THROUGH[table].split()


def test_reasons_name_existing_settings():
    known = set(dotted_keys(PrimeConfig))
    tables = {key.rpartition(".")[0] for key in known}
    for table, reasons in OWNED.items():
        for name, reason in reasons.items():
            for key in re.findall(r"\b[a-z]+\.[a-z_.]+\b", reason.replace("config.json", "")):
                assert key in known or key in tables, (table, name, key)
