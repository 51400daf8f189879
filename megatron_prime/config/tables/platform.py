"""The [platform] table: device, precision and deadlines."""

from typing import Literal

from megatron_prime.config.section import Positive, PositiveFloat, Section


class PlatformConfig(Section):
    """The device and its communication library: CPUs with gloo or GPUs with NCCL."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto uses CUDA if torch finds a GPU, else the CPU."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of weights and activations in training; optimizers keep fp32 master weights with either."""
    threads_per_process: Positive = 1
    """CPU threads per process (torch.set_num_threads)."""
    timeout_s: PositiveFloat = 600.0
    """Deadline of every collective, in seconds."""
    layers: Literal["auto", "torch", "transformer_engine"] = "auto"
    """Implementation of the layers: auto uses NVIDIA's Transformer Engine on GPUs if it imports, else plain torch."""
