"""Megatron-LM's arguments and megatron-core's fields: mapping, pass-through, and the fields that other options own.

- `arguments`: the meaning of each command-line argument of Megatron-LM
- `mapping`: maps the arguments of an existing setup to options
- `fields`: names and types of megatron-core's configuration fields, read without importing it
- `owned`: fields that cannot be passed through, and the option to use instead
- `schema`: the [megatron] table
"""
