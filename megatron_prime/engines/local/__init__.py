"""The embedded engine, for tests and small runs.

- `build`: builds the engine of a run and its weight sync
- `decoding`: autoregressive decoding of a batch of requests
- `engine`: the implementation of `rollout.engine.Engine`
- `group_stream`: prompts that are being sampled, each rank's share of them in batches
- `growing_cache`: a cache of keys and values with room for the tokens to come
- `kept_cache`: keys and values of responses between their turns
- `expert_views`: views of fused experts by the names of HF checkpoints
- `sampling`: samples tokens from logits
"""
