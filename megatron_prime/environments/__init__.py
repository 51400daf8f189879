"""Environments: what replies to the policy between the turns of a response.

Worker processes import the package, so it must not import torch; modules that do say so.

- `protocol`: what an environment is; a user's own implements it
- `registry`: finds the class that a configuration names, in a worker process
- `replies`: checks what an environment returns
- `worker`: main program of a worker process
- `slot`: one worker process of a pool, and its episodes (imports torch)
- `pool`: runs the environments of many episodes in worker processes, under a deadline (imports torch)
- `tool_calls`: finds the calls of tools in a turn
- `toolbox`: the tools of an environment, called by name
- `tools/`: the tools that are known by name
- `episodes`: episodes as rollout engines see them, with tokens (imports torch)
- `trial`: tries the environment of a run on rows of its data (imports torch)
- `builtin/`: the environments that are known by name
"""
