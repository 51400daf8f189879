"""Hugging Face formats: config.json, checkpoints, and the mapping between HF tensors and Megatron parameters.

All but `checkpoint` and `convert` use the standard library only, so that a login node can check and plan a run.

- `config_json`: reads config.json into the fields of a `ModelShape`
- `rope`: reads the scaling of rotary position embeddings
- `shape`: `ModelShape`, the sizes and flags of a model, and `read_shape`
- `stages`: the layers of each pipeline stage
- `families/`: one file per supported `model_type`: its parameter table and how its config.json is read
- `training_limits`: models and layouts that cannot be trained; used by `check` and by the model builder
- `prm_record`: with which reference and settings the scores of a PRM have a meaning
- `identity`: hashes of a model folder, by which a resumed run recognizes its models
- `weight_files`: the format of the weights in a model folder
- `headers`: reads the headers of safetensors files and compares them with a model
- `layouts`: splits one table row over tensor-parallel ranks
- `mapping`: all parameters of a rank, all tensors of a checkpoint, all shards of an engine
- `serving`: memory that a server needs for weights and KV cache
- `checkpoint`: reads and writes safetensors checkpoints slice by slice
- `convert`: copies between HF tensors and Megatron parameters
"""
