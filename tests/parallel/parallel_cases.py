"""Inputs of the four processes that run the tests of topology, collectives and context parallelism."""

from itertools import pairwise

import torch

GRIDS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)]
"""Tensor and pipeline sizes."""
NUM_RANKS = 4
TENSOR_SIZES = (1, 2, 4)
SHARING_LAYOUTS = ("tp2 pp2", "tp2 dp2", "tp4", "dp4", "pp2 dp2")
RESOURCE_LAYOUTS = ("tp4", "tp2 pp2", "tp2+sp ep2 etp2")
"""Layouts that are built and closed while threads and file descriptors are counted."""
SPARE_FILES = 10
"""Sockets that may still be closing when file descriptors are counted; a topology that leaks has about 90 of them."""
NUM_REAL, NUM_PADDED, HIDDEN, NUM_TOKENS = 37, 64, 12, 10
"""Number of real tokens. On 4 ranks of 16 rows each, the third holds 5 real rows and the last none."""


def make_case(num_tokens=NUM_TOKENS, temperature=1.0, chunk_tokens=4, dtype=torch.float32, scale=1.0, **more):
    generator = torch.Generator().manual_seed(7)
    weight_VH = torch.full(
        (NUM_PADDED, HIDDEN), torch.nan
    )  # NaN shows in every result if a padding row is read
    weight_VH[:NUM_REAL] = torch.randn(NUM_REAL, HIDDEN, generator=generator) * scale
    labels_R = torch.randint(0, NUM_REAL, (num_tokens,), generator=generator)
    labels_R[:5] = torch.tensor([0, 15, 16, 32, 36])[:num_tokens]  # first and last rows of shards
    case = {
        "hidden_RH": torch.randn(num_tokens, HIDDEN, generator=generator).to(dtype),
        "weight_VH": weight_VH.to(dtype),
        "labels_R": labels_R,
        "num_real": NUM_REAL,
        "upstream_2R": torch.randn(2, num_tokens, generator=generator),
        "temperature": temperature,
        "chunk_tokens": chunk_tokens,
        "gathered": False,
        "tile_columns": 5,
    }
    return case | more


CASES = {
    "chunks of 4": make_case(),
    "chunks of 1": make_case(chunk_tokens=1),
    "one tile": make_case(chunk_tokens=1000, tile_columns=1000),
    "tiles of one column": make_case(tile_columns=1),
    "one chunk exactly": make_case(chunk_tokens=NUM_TOKENS),
    "chunk larger than R": make_case(chunk_tokens=1000),
    "cold": make_case(temperature=0.3),
    "hot": make_case(temperature=2.5, chunk_tokens=3),
    "large logits": make_case(scale=60.0),
    "log-probs alone": make_case(upstream_2R=torch.stack([torch.ones(NUM_TOKENS), torch.zeros(NUM_TOKENS)])),
    "entropy alone": make_case(upstream_2R=torch.stack([torch.zeros(NUM_TOKENS), torch.ones(NUM_TOKENS)])),
    "no tokens": make_case(num_tokens=0),
    "one token": make_case(num_tokens=1),
    "gathered hidden": make_case(gathered=True),
    "bf16": make_case(dtype=torch.bfloat16),
}


CONTEXT_SLOPE = 1.5


def make_context_case(size, bounds, num_heads=2, head_dim=4):
    """Return a case of sequences with cumulative lengths `bounds` on `size` context ranks."""
    generator = torch.Generator().manual_seed(size)
    longest = max((stop - start for start, stop in pairwise(bounds)), default=0)
    angles_TD = torch.arange(longest)[:, None] * torch.tensor([1.0, 0.1], dtype=torch.float64)
    shape = (bounds[-1], num_heads, head_dim)
    return {
        "size": size,
        "bounds": bounds,
        "whole_SKD": torch.randn(shape, generator=generator, dtype=torch.float64),
        "weights_RSKD": torch.randn(size, *shape, generator=generator, dtype=torch.float64),
        "angles_TD": torch.cat([angles_TD, angles_TD], dim=1),
    }


CONTEXT_CASES = {
    "one rank": make_context_case(1, [0, 2, 8]),
    "two ranks": make_context_case(2, [0, 8, 8, 24, 28]),
    "two ranks, one sequence": make_context_case(2, [0, 12]),
    "four ranks": make_context_case(4, [0, 16, 24, 24, 64]),
}


PIPELINES = ((2, 1, 1, 1), (2, 2, 1, 1), (4, 1, 1, 1), (4, 2, 1, 1), (2, 1, 2, 1), (2, 2, 1, 2))
"""Stages, virtual stages a stage, context ranks, and tensor ranks with sequence parallelism."""
PIPELINE_LENGTHS = ((6,), (8, 2, 4), (2, 8, 4, 6), (4, 8, 2, 6, 2), (10, 2, 6, 2, 12, 4, 8, 2))
"""Tokens of each microbatch of a pass, of all context and tensor ranks together."""
PIPELINE_WIDTH = 6
PIPELINE_CASES = [
    (layout, lengths, is_forward_only)
    for layout in PIPELINES
    for lengths in PIPELINE_LENGTHS
    # The interleaved schedule takes multiples of the number of stages.
    if layout[1] == 1 or len(lengths) % layout[0] == 0
    for is_forward_only in (False, True)
]


def pipeline_inputs(lengths, num_shares):
    """Return one context or tensor rank's part of each microbatch, [tokens, 1, width]."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(length, 1, PIPELINE_WIDTH, generator=generator)[::num_shares] for length in lengths]


def pipeline_weights(num_chunks):
    """Return the weight of each chunk of the pipeline."""
    generator = torch.Generator().manual_seed(12)
    return [torch.randn(PIPELINE_WIDTH, PIPELINE_WIDTH, generator=generator) for _ in range(num_chunks)]
