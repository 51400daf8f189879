"""[model]: the checkpoint that a run starts from."""

from megatron_prime.config.section import Section, UserPath


class ModelConfig(Section):
    """The HF checkpoint from which policy, PRM and reference start."""

    path: UserPath
    """HF checkpoint directory (config.json, safetensors, tokenizer) of the policy; or what tools/hf_to_megatron.py
    wrote of one, for the training models alone: an engine that reads weights from disk needs safetensors."""
