"""Command-line tools; run one with `python -m tools.NAME --help`.

- `chaos`: kills a training run at random moments and checks that its result does not change.
- `compare_hf`: compares the weights of two Hugging Face checkpoints.
- `convert_data`: converts data files into the schema of Eurus-2-RL-Data or into SFT demonstrations.
- `docs_site`: the pages of the documentation that are generated, for `make docs`.
- `gpu_check`: checks everything that GPUs can show.
- `gpu_checks`: the checks of `gpu_check`.
- `install_sglang`: builds the Python environment of the SGLang servers.
- `prompt_stats`: writes how often each prompt of a run was sampled, with its accuracy.
- `run_summary`: explains why a job ended, from the logs of its ranks.
- `shrink_te_wheel`: makes Transformer Engine's wheel of kernels small enough to carry.
"""
