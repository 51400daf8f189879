"""Test cases for the per-logit operations, as tiles of logits and as whole output layers, and the expected values."""

import math

import torch

from tests.parallel.parallel_cases import make_case

BLOCK = 8
"""Columns per program in the tests: few, so that small tiles have full blocks and a partial last one."""
EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8}


def make_logits(
    num_columns, tiles, num_tokens=4, temperature=1.0, dtype=torch.float32, scale=2.0, first_row=0, **more
):
    """Return a case: logits of a shard that begins at vocabulary index `first_row`, in tiles of the given widths."""
    assert sum(tiles) == num_columns
    generator = torch.Generator().manual_seed(3)
    labels_C = first_row + torch.randint(0, num_columns, (num_tokens,), generator=generator)
    labels_C[0], labels_C[1] = first_row, first_row + num_columns - 1
    case = {
        "logits_CV": (torch.randn(num_tokens, num_columns, generator=generator) * scale).to(dtype),
        "labels_C": labels_C,
        "first_row": first_row,
        "tiles": tiles,
        "temperature": temperature,
        "upstream_2C": torch.randn(2, num_tokens, generator=generator),
    }
    return case | more


def _far_apart():
    """Return rows of +-1e4 with the maximum in the first column, in the last, in two columns, and in all of them."""
    logits_CV = torch.full((4, 20), -1e4)
    logits_CV[0, 0], logits_CV[1, 19], logits_CV[2, 8:10] = 1e4, 1e4, 1e4
    logits_CV[3] = 1e4
    return logits_CV


LOGIT_CASES = {
    "whole blocks": make_logits(16, [16]),
    "a ragged last block": make_logits(21, [21]),
    "less than a block": make_logits(5, [5]),
    "one column": make_logits(1, [1]),
    "many tiles": make_logits(41, [16, 8, 1, 16]),
    "many tiles, bf16": make_logits(41, [16, 8, 1, 16], dtype=torch.bfloat16),
    "tiles of one column": make_logits(3, [1, 1, 1]),
    "a later shard": make_logits(21, [16, 5], first_row=1000),
    "labels of other shards": make_logits(
        16, [8, 8], first_row=1000, labels_C=torch.tensor([999, 1016, 0, 2**33])
    ),
    "cold": make_logits(21, [16, 5], temperature=0.3),
    "hot, bf16": make_logits(21, [16, 5], temperature=2.5, dtype=torch.bfloat16),
    "+-1e4": make_logits(20, [20], logits_CV=_far_apart()),
    "+-1e4 in tiles": make_logits(20, [8, 12], logits_CV=_far_apart()),
    "+-1e4, bf16, cold": make_logits(20, [20], logits_CV=_far_apart().bfloat16(), temperature=0.5),
    "all equal": make_logits(21, [16, 5], logits_CV=torch.full((4, 21), 7.25)),
}

NOT_FINITE = make_logits(
    12,
    [8, 4],
    logits_CV=torch.zeros(4, 12).index_put_(
        (torch.arange(4), torch.tensor([1, 9, 10, 3])),
        torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0]),
    ),
)
"""A case with one row each that contains inf, -inf and NaN, and a finite row."""

LAYER_CASES = {
    "tiles": make_case(tile_columns=16),
    "hot, one tile": make_case(temperature=2.5, chunk_tokens=1000, tile_columns=1000),
    "tiles of an odd width": make_case(tile_columns=13, chunk_tokens=3),
    "large logits": make_case(scale=60.0, tile_columns=16),
    "gathered hidden": make_case(gathered=True, tile_columns=16),
    "bf16": make_case(dtype=torch.bfloat16, tile_columns=16),
    "no tokens": make_case(num_tokens=0),
}


def walk(tile_math, logits_CV, labels_C, first_row, tiles, temperature, upstream_2C):
    """Return the softmax statistics and the gradient that an implementation computes tile by tile."""
    num_tokens = len(labels_C)
    work = tile_math(num_tokens, max(tiles), logits_CV, temperature)
    maximum_C = torch.full((num_tokens,), -torch.inf)
    sums_3C = torch.zeros(3, num_tokens)
    parts = list(logits_CV.split(tiles, dim=1))
    first_columns = [first_row + sum(tiles[:index]) for index in range(len(tiles))]
    for part_CW, first_column in zip(parts, first_columns, strict=True):
        product_CW = work.product_buffer(*part_CW.shape).copy_(part_CW)
        work.accumulate(product_CW, labels_C, first_column, maximum_C, sums_3C)
    logsumexp_C = sums_3C[0].log() + maximum_C
    entropy_C = sums_3C[0].log() - sums_3C[1] / sums_3C[0]
    per_token_4C = torch.stack([logsumexp_C, entropy_C, *upstream_2C])
    grads = []
    for part_CW, first_column in zip(parts, first_columns, strict=True):
        # NaN in the rest of the buffer shows whether a kernel writes beyond a narrower tile.
        whole_CW = work.product_buffer(num_tokens, max(tiles)).fill_(torch.nan)
        product_CW = work.product_buffer(*part_CW.shape).copy_(part_CW)
        grads.append(work.gradient(product_CW, labels_C, first_column, per_token_4C).clone())
        if product_CW.stride(0) == whole_CW.stride(0):
            assert whole_CW[:, part_CW.shape[1] :].isnan().all(), "columns beyond the tile were written"
    return {
        "label_logits": sums_3C[2],
        "logsumexp": logsumexp_C,
        "entropy": entropy_C,
        "grad": torch.cat(grads, dim=1),
    }


def by_definition(logits_CV, labels_C, first_row, tiles, temperature, upstream_2C):
    """Return the expected values, computed row by row in Python floats.

    The gradient is that of sum(u log p[label] + w H) with respect to each logit.
    """
    found = {"label_logits": [], "logsumexp": [], "entropy": [], "grad": []}
    for row, label, u, w in zip(
        logits_CV.double().tolist(), labels_C.tolist(), *upstream_2C.tolist(), strict=True
    ):
        logits = [logit / temperature for logit in row]
        largest = max(logits)
        logsumexp = largest + math.log(math.fsum(math.exp(logit - largest) for logit in logits))
        logprobs = [logit - logsumexp for logit in logits]
        probs = [math.exp(logprob) for logprob in logprobs]
        entropy = -math.fsum(p * logprob for p, logprob in zip(probs, logprobs, strict=True))
        own_column = label - first_row
        found["label_logits"].append(logits[own_column] if 0 <= own_column < len(logits) else 0.0)
        found["logsumexp"].append(logsumexp)
        found["entropy"].append(entropy)
        found["grad"].append(
            [
                (u * ((column == own_column) - p) - w * p * (logprob + entropy)) / temperature
                for column, (p, logprob) in enumerate(zip(probs, logprobs, strict=True))
            ]
        )
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def check_walk(case, found):
    """Compare the results of `walk` with the expected values."""
    expected = by_definition(**case)
    # The error of every difference is bounded by the float32 rounding error of the largest logit.
    largest = case["logits_CV"].abs().max().item() / case["temperature"]
    statistics = EPS[torch.float32] * (8 + 2 * largest)
    for key in ("label_logits", "logsumexp", "entropy"):
        torch.testing.assert_close(found[key].double(), expected[key], rtol=0, atol=statistics)
    dtype = case["logits_CV"].dtype
    assert found["grad"].dtype == dtype
    scale = max(1.0, expected["grad"].abs().max().item())
    tolerance = (statistics + EPS[dtype]) * scale * 4
    torch.testing.assert_close(found["grad"].double(), expected["grad"], rtol=0, atol=tolerance)


def check_not_finite(found):
    """Check that rows with inf, -inf or NaN have a NaN entropy and that the finite row is correct."""
    assert found["entropy"].isnan().tolist() == [True, True, True, False]
    assert abs(found["entropy"][3].item() - math.log(12)) < 1e-5
