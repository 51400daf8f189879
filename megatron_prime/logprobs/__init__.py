"""Log-probs and entropies from hidden states, without materializing the logits.

- `kernels`: Triton kernels for the per-logit operations of one tile.
- `output_layer`: the vocabulary-parallel output layer, forward and backward.
- `tiles`: the interface of the per-logit operations, and their implementation in plain torch.
"""
