"""A run rehearsed without GPUs, memory or other processes: chosen ranks at full size, one process each.

What runs is the trainer's own code. Only what does not exist is replaced: tensors on the device have a shape and no
content (torch's `meta`), process groups answer at once, and the engine samples nothing.

- `batch`: made-up responses of given lengths
- `collectives`: the record of a rank's collectives
- `comparison`: ranks of a group that call different collectives
- `engine`: an engine that samples nothing, and a weight sync that only plans
- `gpu_kernels`: operations for which torch chooses the kernel by the device
- `groups`: process groups without other processes
- `ledger`: live storages by role and kind, and the peak of each phase
- `operations`: the dispatch mode that stands in for the device
- `platform`: the platform of a rehearsal
- `processes`: which ranks are rehearsed, each in a process of its own
- `rank`: the rehearsal of one rank
- `report`: the result as tables and as JSON
- `results`: shapes of the results of operations
- `values`: values of device tensors that follow from data of the host
- `world`: the switch that turns a process into one rank of a job
"""
