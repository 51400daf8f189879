"""Functions that one rank runs in tests/models/test_gpt.py and test_builder.py."""

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_prime.models.builder import build_model
from megatron_prime.models.gpt import ScoreRequest
from tests.support.layout_worker import topology_of, weight_blocks


def score_every_token(layouts, folders, token_ids, positions, temperatures, vocab_size):
    """Return log-probs and entropies [positions, vocabulary] of each model in each layout, by direct forward calls."""
    results = {}
    for layout in layouts:
        topology = topology_of(layout)
        for name, folder in folders.items():
            built = build_model(folder, topology)
            for temperature in temperatures:
                scores = _score(built.module, topology, token_ids, positions, temperature, vocab_size)
                results[layout, name, temperature] = scores
            if topology.is_last_stage:
                shard = built.module.vocab_shard()
                results[layout, name, "rows"] = (shard.first_row, shard.num_rows)
    return results


@torch.no_grad()
def _score(module, topology, token_ids, positions, temperature, vocab_size):
    num_tokens = len(token_ids)
    if not topology.is_first_stage:
        hidden_S1H = torch.empty(num_tokens, 1, module.config.hidden_size)
        dist.recv(hidden_S1H, group_src=0, group=topology.pipeline_group)
        module.set_input_tensor(hidden_S1H)
    bounds = torch.tensor([0, num_tokens], dtype=torch.int32)
    output = module(
        token_ids_S=torch.tensor(token_ids),
        position_ids_S=torch.arange(num_tokens),
        packed_seq_params=PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=bounds,
            cu_seqlens_kv=bounds,
            max_seqlen_q=num_tokens,
            max_seqlen_kv=num_tokens,
        ),
        request=ScoreRequest(
            positions_R=torch.tensor(positions).repeat_interleave(vocab_size),
            labels_R=torch.arange(vocab_size).repeat(len(positions)),
            temperature=temperature,
            chunk_tokens=100,
        ),
    )
    if not topology.is_last_stage:
        dist.send(output, group_dst=1, group=topology.pipeline_group)
        return None
    return output.view(2, len(positions), vocab_size)


def build_models(good, faulty):
    """Build a valid checkpoint in both dtypes, with and without weights; return the errors for invalid ones."""
    report = {}
    for dtype in ("fp32", "bf16"):
        topology = topology_of("one", dtype)
        built = build_model(good, topology)
        report[dtype] = {
            "dtypes": {parameter.dtype for parameter in built.module.parameters()},
            "weights": weight_blocks(built, topology),
        }
    topology = topology_of("one")
    random = build_model(good, topology, load_weights=False)
    report["random"] = weight_blocks(random, topology)
    report["dropout"] = _dropout(random.module)
    report["waits for the device"] = random.module.config.batch_p2p_sync
    report["faults"] = {name: _refusal(folder, topology) for name, folder in faulty.items()}
    return report


def _dropout(module):
    rates = {layer.p for layer in module.modules() if isinstance(layer, torch.nn.Dropout)}
    return rates | {module.config.hidden_dropout, module.config.attention_dropout}


def _refusal(folder, topology):
    try:
        build_model(folder, topology)
    except ValueError as error:
        return str(error)
    return None
