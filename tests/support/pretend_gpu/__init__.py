"""A GPU that is pretended on a CPU, so that whole runs show what they would do to a real one.

Tensors stay in host memory and are computed there, but their storages are marked as device memory. `device_answers`
lets torch give the answers of a GPU (where a tensor lies, moves from and to it), `operation_watch` looks at each
operation, `cuda_calls` stands in for torch.cuda and `groups` for NCCL. `machine.install` switches all of it on. What is
found is counted by phase of the step, kind and place (`findings`):

    faults  fail or give wrong numbers on a GPU: tensors of two devices in one operation, a host tensor in a collective
            of NCCL, a read of memory that was offloaded or whose copy has not ended
    costs   make the host wait for the device: .item(), a boolean index, a blocking copy

Not seen: Transformer Engine, Triton kernels, other processes (SGLang's servers), and other threads.
"""
