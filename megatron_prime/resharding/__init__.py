"""Moving weights from the layout of the training job to the layout of the inference engines.

The plan says who sends which slice of which tensor to whom; the transport carries it out between training ranks.

- `balance`: distributes equal units of work over ranks that already have different loads
- `block_sync`: the weight sync into tensors of the training processes, such as those of the embedded engine
- `buckets`: splits a plan into buckets that bound the memory of a send
- `layouts`: parallel layouts of the training job and of the engines
- `plan`: the transfers of a weight sync
- `summary`: bytes that a plan moves, and the lower bound
- `tensor_groups`: groups of HF tensors that are laid out in the same way on every rank
- `transport`: delivery of the planned slices between training ranks
"""
