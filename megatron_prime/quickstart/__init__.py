"""A toy reasoning task that a whole run learns on two CPU cores, for `megatron-prime quickstart` and the tests.

- `arithmetic_task`: generates the task, with a tokenizer and a model
- `folder`: the inputs of a quickstart in its folder: the task, and a configuration to run and to change
"""
