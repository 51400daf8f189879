"""The [model] table: the checkpoint that a run starts from."""

from megatron_prime.config.section import Section, UserPath


class ModelConfig(Section):
    """The checkpoint from which policy, PRM and reference start."""

    path: UserPath
    """Folder of an HF checkpoint (config.json, safetensors, tokenizer). Training models also load a folder that
    `megatron-prime hf-to-megatron` wrote; an engine that reads weights from disk needs safetensors."""
