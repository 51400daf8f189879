"""Megatron GPT models built from a `ModelShape`: packed microbatches, forward and backward passes, log-probs.

- `builder`: builds this rank's part of a model and fills it with weights
- `gpt`: a GPT model that returns log-probs and entropies instead of logits
- `rope`: frequencies of rotary position embeddings
- `layers`: attention and norm in plain torch
- `te_layers`: layers of Transformer Engine, and FP8
- `experts`: routing of mixtures of experts in packed batches
- `passthrough`: adds the settings of [megatron] to megatron-core's configurations
- `packing`: assigns rows to ranks and microbatches
- `costs`: the cost of a row, by which packing balances
- `packed_sequences`: a microbatch in the packed layout
- `forward`: runs rows of a batch through a model and the pipeline schedule
- `chunk_state`: the state of a model in Megatron's checkpoints
- `megatron_folder`: loads weights in Megatron's format
- `stored_pickles`: reads the pickled parts of a checkpoint without executing stored code
"""
