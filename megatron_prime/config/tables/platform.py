"""[platform]: device, precision and deadlines."""

from typing import Literal

from megatron_prime.config.section import Positive, PositiveFloat, Section


class PlatformConfig(Section):
    """The machine: CPU over gloo or GPUs over NCCL."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA when torch sees a GPU."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of weights and activations in training."""
    threads_per_process: Positive = 1
    """CPU threads a process (torch.set_num_threads)."""
    timeout_s: PositiveFloat = 600.0
    """Deadline of every collective, in seconds."""
    layers: Literal["auto", "torch", "transformer_engine"] = "auto"
    """What layers are made of: auto takes NVIDIA's Transformer Engine on GPUs where it imports, else plain torch."""
