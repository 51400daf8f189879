"""Measure how evenly packing distributes a batch over ranks: `python -m benchmarks.packing_balance`, a few seconds.

Batches are heavy-tailed (log-normal responses that are truncated at the limit, 200 prompt tokens). The baseline assigns
rows to ranks in the order of arrival, and each rank fills one microbatch after another.
"""

import random
import statistics
import time
from collections.abc import Sequence

from megatron_prime.hf.shape import ModelShape
from megatron_prime.models.costs import row_costs
from megatron_prime.models.packing import Packing, Padding, RowCosts, pack

PROMPT_TOKENS = 200
QWEN_7B = ModelShape.from_hf_config(
    {
        "model_type": "qwen2",
        "num_hidden_layers": 28,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
    }
)
CASES = {
    # name: (rows, longest response, max_tokens, data ranks, padding)
    "4k responses, 8 ranks": (1024, 3896, 16384, 8, Padding()),
    "4k responses, 32 ranks, tp8+sp": (1024, 3896, 8192, 32, Padding(1, 8)),
    "4k responses, 16 ranks, tight": (128, 3896, 4096, 16, Padding()),
    "32k responses, 16 ranks, tp4+sp cp4": (1024, 32000, 32768, 16, Padding(8, 32)),
    "32k responses, 64 ranks, FP8 tp4+sp cp2": (8192, 32000, 32768, 64, Padding(4, 256)),
}


def naive(lengths: Sequence[int], max_tokens: int, num_ranks: int) -> Packing:
    """Pack rows in the order of arrival: equally many per rank, filling one microbatch after another."""
    per_rank = -(-len(lengths) // num_ranks)
    ranks = []
    for rank in range(num_ranks):
        microbatches: list[list[int]] = [[]]
        for row in range(rank * per_rank, min((rank + 1) * per_rank, len(lengths))):
            if sum(lengths[other] for other in microbatches[-1]) + lengths[row] > max_tokens:
                microbatches.append([])
            microbatches[-1].append(row)
        ranks.append(microbatches)
    # Pipeline schedules need equally many microbatches on every rank, so shorter ranks get empty ones.
    most = max(len(microbatches) for microbatches in ranks)
    return Packing(tuple(tuple(tuple(rows) for rows in [*mbs, *[[]] * (most - len(mbs))]) for mbs in ranks))


def figures(packing: Packing, lengths: Sequence[int], costs: Sequence[float], padding: Padding):
    """Return (slowest rank relative to the mean, the same if ranks wait at every microbatch, share of padding)."""
    by_microbatch = [[sum(costs[row] for row in rows) for rows in rank] for rank in packing.rows]
    mean = sum(map(sum, by_microbatch)) / len(by_microbatch)
    # The k-th microbatch of all ranks ends when the slowest rank has finished its k-th.
    in_step = sum(max(of_ranks) for of_ranks in zip(*by_microbatch, strict=True))
    tokens = sum(
        padding.microbatch(sum(padding.sequence(lengths[row]) for row in rows)) or padding.microbatch_to
        for rank in packing.rows
        for rows in rank
    )
    return max(map(sum, by_microbatch)) / mean, in_step / mean, 1 - sum(lengths) / tokens


def batch(seed: int, num_rows: int, longest: int, costs: RowCosts):
    rng = random.Random(seed)
    responses = [min(longest, max(16, int(rng.lognormvariate(0, 1) * longest / 8))) for _ in range(num_rows)]
    return [PROMPT_TOKENS + r for r in responses], [costs(PROMPT_TOKENS + r, r) for r in responses]


def main() -> None:
    costs = row_costs(QWEN_7B)
    print(f"attention equals the linear layers at {costs.attention_tokens:.0f} tokens\n")
    print(
        "| batch | method | slowest rank / mean | in step / mean | microbatches per rank | padding | pack ms |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (num_rows, longest, max_tokens, num_ranks, padding) in CASES.items():
        for method in ("arrival order", "ours"):
            found, counts, seconds = [], [], []
            for seed in range(10):
                lengths, row_cost = batch(seed, num_rows, longest, costs)
                start = time.perf_counter()
                if method == "ours":
                    packing = pack(lengths, max_tokens, num_ranks, row_cost, padding)
                else:
                    packing = naive(lengths, max_tokens, num_ranks)
                seconds.append(time.perf_counter() - start)
                found.append(figures(packing, lengths, row_cost, padding))
                counts.append(packing.num_microbatches)
            slowest, in_step, padded = (statistics.mean(values) for values in zip(*found, strict=True))
            print(
                f"| {name} | {method} | {slowest:.3f} | {in_step:.3f} | {statistics.mean(counts):.1f} | {padded:.2%} "
                f"| {1000 * statistics.median(seconds):.1f} |"
            )


if __name__ == "__main__":
    main()
