"""Processes, devices and communication between ranks; the only layer that uses Megatron's parallel_state.

- `adam`: AdamW with the state layout that Megatron's distributed optimizer expects.
- `collectives`: sums, gathers and broadcasts over the ranks of a topology.
- `connectivity`: checks that all ranks of a job reach each other.
- `context`: context parallelism over packed sequences.
- `cpu_shim`: redirects Megatron's CUDA calls on a machine without a GPU.
- `gloo`: gloo groups that share one device, and so one thread that waits for messages.
- `lifeline`: ties child processes to their parent, so that they end with it.
- `out_of_memory`: distinguishes errors for want of memory, and says what needs less.
- `peer_loss`: distinguishes the loss of another process from an error of this one.
- `pipeline_messages`: messages between pipeline stages, with shapes that follow from the packing.
- `platform`: device, communication backend, dtype and memory.
- `rendezvous`: addresses at which the processes of a job meet.
- `topology`: Megatron's process groups and this rank's coordinates.
- `watchdog`: terminates a job that hangs and names the ranks that did not arrive.
"""
