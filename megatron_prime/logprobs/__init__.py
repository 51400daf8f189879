"""Log-probs and entropies from hidden states, without ever holding the whole logits in memory.

- `kernels`: Triton kernels that reduce one tile of logits.
- `output_layer`: the vocabulary-parallel output layer, forward and backward.
- `tiles`: the same reductions in plain torch, and the sizes of tiles.
"""
