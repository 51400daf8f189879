"""Predicts the memory and time of a run from its configuration and each model's config.json.

Planning needs no GPU, no weights and no torch.

- `planned_run`: the run to plan: configuration, model shapes, GPUs, and assumptions
- `gpus`: data sheets of known GPUs
- `counts`: parameters and FLOPs of a model
- `fp8`: memory of FP8 layers
- `activations`: memory of forward and backward passes
- `memory`: memory per rank by part and phase
- `times`: seconds of a step by phase
- `search`: the fastest layout that fits
- `splits`: the best split of GPUs between training and servers
- `report`: a plan as text, tables and JSON
"""
