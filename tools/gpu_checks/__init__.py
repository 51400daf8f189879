"""The checks of `tools.gpu_check`.

- `catalog`: the list of checks.
- `kernels`: errors and times of the log-prob kernels.
- `lines`: the results of checks, and the setting they run in.
- `machine`: versions, copy bandwidth and matrix-product speed.
- `offload`: offloading and restoring the parts of a role.
- `precision`: bf16 and FP8 compared to fp32, and process rewards that must be exactly 0.
- `report`: the results as a table, as JSON and as Markdown.
- `roles`: models of public shapes, built as a run builds them.
- `runs`: a complete PRIME run through the command line.
- `serving`: a colocated SGLang server.
- `speed`: time and memory of a training step.
"""
