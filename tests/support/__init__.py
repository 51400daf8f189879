"""Fixtures, oracles and doubles that tests of several folders share.

- `deadlines`: deadlines that scale with MEGATRON_PRIME_TEST_DEADLINE_SCALE.
- `distributed_runner`: runs a function on several ranks.
- `four_processes`: session fixture of the tests of topology, collectives and context.
- `hf_shapes`: shapes of published models.
- `layout_worker`: layouts by name, and HF tensors from a rank's weights.
- `live_servers`, `sglang_live`: real SGLang servers with tiny models.
- `minimal_config`: fixture with the smallest valid configuration.
- `planned_runs`, `plan_shapes`: jobs and models for the tests of planning.
- `rollout_doubles`: stand-ins for engines and verifiers.
- `sandbox_probe`: finds out whether this machine can run the sandbox.
- `side_by_side`: groups of tests for a run in several processes.
- `tiny_models`, `tokenizers`: tiny random models and tokenizers.
- `toy_runs`, `toy_worker`: whole runs of a toy task.
- `training_batches`: batches with losses in plain torch.
"""
