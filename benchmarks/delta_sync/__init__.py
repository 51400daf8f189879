"""Weight syncs that send changes alone: how much changes, bytes and seconds, and a chain of disturbed syncs.

    python -m benchmarks.delta_sync changes     # the share of bf16 weights that an update changes, by learning rate
    python -m benchmarks.delta_sync transfer    # bytes and seconds against a full sync and against the transport alone
    python -m benchmarks.delta_sync slow        # the same with a network of 1 Gbit/s and 200 Mbit/s
    python -m benchmarks.delta_sync chain       # 200 syncs with faults, compared by SGLang's own checksums

`transfer`, `slow` and `chain` start real SGLang servers on this machine's CPUs.

- `changes`: an HF model in float32 with Adam, its weights rounded to bf16 before and after a step
- `transfer`: pushes to one server, alternating between kinds
- `slow_network`: a network namespace with a limited rate
- `transport`: two processes and a gloo connection, without anything else
"""
