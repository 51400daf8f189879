"""The checks of `tools.gpu_check`.

- `catalog`: the list of checks.
- `checkpoints`: memory of a save, and an exact continuation.
- `colocated_run`: a complete run with a server on the trainer's GPU, which is killed in the middle.
- `kernels`: errors and times of the log-prob kernels.
- `lines`: the results of checks, and the setting they run in.
- `machine`: versions, copy bandwidth and matrix-product speed.
- `offload`: offloading and restoring the parts of a role.
- `precision`: bf16 and FP8 compared to fp32, and process rewards that must be exactly 0.
- `ranks`: several GPUs: layouts, collectives of objects, and a rank that does not arrive.
- `report`: the results as a table, as JSON and as Markdown.
- `results`: outcomes in a file that only grows.
- `roles`: models of public shapes, built as a run builds them.
- `runs`: a complete PRIME run through the command line.
- `serving`: SGLang servers: syncs by each transport, FP8, memory.
- `sharing`: two processes on one GPU.
- `speed`: time and memory of a training step.
"""
