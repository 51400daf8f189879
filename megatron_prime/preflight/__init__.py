"""Everything that can be known to be wrong before a process starts.

`check`, and every command before it starts its processes, asks the modules below; all but two import neither torch nor
Megatron. What the start of a run refuses comes from the same functions (`hf.shape`, `hf.training_limits`,
`hf.weight_files`, `data.files`), so that `check` refuses exactly what `train` refuses.

- `checks`: runs all checks of a command and raises one error with every fault
- `models`: checkpoints against the layout and the settings
- `data`: training, evaluation, benchmark and chat-template files
- `processes`: the number of processes against the layout and the minibatches
- `algorithm`: the estimator, PRM objective and policy loss, and what they require
- `engines`: the environment of SGLang servers
- `environments`: what replies to the policy: names, tools, budgets
- `imports`: import paths of users' code, which is not imported
- `rewards`: verifiers, their imports and their sandbox
- `outputs`: folders that a command writes
- `loggers`: the packages of the loggers that a run names
- `resume`: models and verifiers of a resumed run against those of its first start
- `replay`: a rollout log that a run is to train on
- `prm_training`: the responses of `train-prm`, and the reference that a trained PRM needs
- `plausibility`: sizes that are possible but hardly meant
- `trial`: tokenizer, rows and verifiers of a run, tried on a sample (this one imports transformers)
- `doctor`: the machine: packages, devices, file systems, network (this one imports torch)
"""
