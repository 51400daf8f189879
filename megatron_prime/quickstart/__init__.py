"""Toy tasks that whole runs learn on two CPU cores, for `megatron-prime quickstart` and the tests.

- `arithmetic_task`: generates chain arithmetic, with a tokenizer and a model
- `arithmetic`: its problems, and a demonstrator who makes mistakes
- `turn_tasks`: generates two tasks of several turns
- `observed_chain`: the environment of chain arithmetic in turns, with a remark on every step
- `hidden_numbers`: a tool that knows what the policy cannot
- `folder`: the inputs of a quickstart in its folder: the task, and a configuration to run and to change
"""

TASKS = ("chain", "arithmetic", "tools")
"""The tasks: chain arithmetic in turns, with remarks of an environment; the same in one turn, without; and a number
that only a tool knows. The first one is the default."""
