"""The tables of the configuration: the module of a table has its name, the string below a field documents the option.

- `model`, `prm`, `reference`, `policy`: the models and their updates
- `data`, `filter`, `reward`: prompts, their selection, and outcome rewards
- `rollout`, `environment`: sampling, SGLang servers, and what replies between turns
- `advantage`: from rewards to advantages
- `trainer`, `checkpoint`, `guards`: the training loop, saving, alarms
- `parallel`, `platform`: layout and device
- `performance/`: offloading, precision, communication
- `observability/`: what a run shows and writes besides its results
- `evaluation`, `prm_evaluation`, `sft`, `prm_training`: the other commands
"""
