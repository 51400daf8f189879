"""The `megatron-prime` command; the one place where engines, transports and platforms are chosen.

- `main`: parses the command line before anything slow is imported
- `commands`: checks the configuration and calls the function of the command
- `arguments`: the arguments of all commands
- `launch`: starts the ranks of a job on one machine
- `assemble`: builds topology, engine, verifier and weight sync from the configuration
- `attempt`: the lock, the store and the records of one attempt of a run that can be resumed
- `offline`: the attempt, the checkpoints and the loop that `sft` and `train-prm` share
- `train`, `sft`, `evaluate`, `rollout`, `convert`, `plan`, `rehearse`, `verify`, `view`: one command each
- `prm`: the commands about a PRM alone
- `quickstart`: a complete run on a toy task
- `formats`: changes the format of a whole checkpoint, HF to Megatron and back
- `dry_run`: what `train` or `train-prm` would start
- `from_megatron`: writes a configuration from Megatron-LM's arguments
- `megatron_script`: reads the arguments out of commands, scripts and YAML files
"""

from megatron_prime.cli.main import main

__all__ = ["main"]
