"""Memory that `megatron-prime plan` predicts, compared to real runs on CPUs and to rehearsals.

- `plan_accuracy`: small real runs
- `rehearsal`: the examples and other large runs; faults of the examples
"""
