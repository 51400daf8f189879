"""Functions that one rank runs in the tests of context parallelism."""

from itertools import pairwise

import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_prime.parallel.context import gather_context, local_tokens, sum_context
from megatron_prime.parallel.topology import build_topology
from tests.parallel.parallel_cases import CONTEXT_SLOPE


def share_tokens(platform, cases):
    """Run each case in a context-parallel group of its size; return values, gradients and Megatron's layout."""
    report = {}
    for name, case in cases.items():
        group = build_topology(platform, context=case["size"]).context_group
        report[name] = {
            "size": group.size(),
            **_gather(case, group),
            **_sum(case, group),
            **_megatrons_view(case, group),
        }
    return report


def _gather(case, group):
    """Gather tokens and differentiate a loss whose weights differ by rank, as the queries of attention do."""
    own_L = local_tokens(case["bounds"], group.size(), group.rank())
    local_LKD = case["whole_SKD"][own_L].requires_grad_()
    gathered_SKD = gather_context(local_LKD, case["bounds"], group)
    (case["weights_RSKD"][group.rank()] * gathered_SKD**2).sum().backward()
    with torch.no_grad():
        strided_LKD = local_LKD.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        strided_SKD = gather_context(strided_LKD, case["bounds"], group)
        column_S = gather_context(local_LKD[:, 0, 0], case["bounds"], group)
    return {
        "own": own_L,
        "gathered": gathered_SKD.detach(),
        "gathered_grad": local_LKD.grad,
        "strided": strided_SKD,
        "column": column_S,
    }


def _sum(case, group):
    """Sum tokens and differentiate the same loss on every rank; `slope` represents a parameter that all ranks share."""
    own_L = local_tokens(case["bounds"], group.size(), group.rank())
    slope = torch.tensor(CONTEXT_SLOPE, dtype=torch.float64, requires_grad=True)
    part_S = case["whole_SKD"].new_zeros(len(case["whole_SKD"]))
    part_S = part_S.index_put((own_L,), slope * case["whole_SKD"][own_L, 0, 0])
    part_S.retain_grad()
    before_S = part_S.detach().clone()
    total_S = sum_context(part_S, group)
    (case["weights_RSKD"][0, :, 0, 0] * total_S**2).sum().backward()
    return {
        "total": total_S.detach(),
        "total_grad": part_S.grad,
        "slope_grad": slope.grad,
        "part_is_untouched": torch.equal(before_S, part_S.detach()),
    }


def _megatrons_view(case, group):
    """Return the tokens that Megatron assigns to this rank, and its rotary embedding of packed tokens in our layout."""
    own_L = local_tokens(case["bounds"], group.size(), group.rank())
    tokens = []
    for start, stop in pairwise(case["bounds"]):
        batch = {"tokens": torch.arange(start, stop)[None]}
        tokens += get_batch_on_this_cp_rank(batch, cp_group=group)["tokens"][0].tolist()
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2, apply_rope_fusion=False)
    rotated_LKD = apply_rotary_pos_emb(
        case["whole_SKD"][own_L],
        case["angles_TD"][:, None, None],
        config,
        cu_seqlens=torch.tensor(case["bounds"], dtype=torch.int32),
        cp_group=group,
    )
    return {"megatron_tokens": tokens, "rotated": rotated_LKD}
