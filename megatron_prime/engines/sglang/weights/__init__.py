"""The training ranks' side of weight syncs into SGLang servers; `loader` is the servers' side.

- `alignment`: checks that slices are whole quantization blocks
- `bucketed_plan`: the transfers of a plan by bucket, for senders and receivers
- `coordinator`: control calls of an attempt, and the proof at its end
- `disk_sync`: weight sync by way of a checkpoint on disk
- `full_check`: expected answers of SGLang's own checksums
- `group_sender`: sends slices through a gloo or NCCL process group
- `ipc_sender`: hands slices over in memory shared with the servers
- `quantize`: block FP8 quantization
- `sender`: interface and records of the senders
- `sent_weights`: the bits that were sent last, and what has changed since
- `shard_sync`: weight sync from rank to rank
- `shared_buffer`: memory that another process on the node can map
- `source`: the sending side, built from the policy and the servers' layout
"""
