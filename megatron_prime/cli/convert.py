"""The command `megatron-prime convert`."""

from pathlib import Path

from megatron_prime.config.run import PrimeConfig
from megatron_prime.conversion.logits import compare_logits, tolerance_of
from megatron_prime.conversion.role import convert_role, role_folder
from megatron_prime.observability import Progress


def convert(
    config: PrimeConfig,
    role: str,
    checkpoint: Path | None,
    output: Path,
    dtype: str = "keep",
    num_workers: int = 1,
    logits: bool = False,
) -> None:
    """Write a role of a training checkpoint as an HF checkpoint.

    Args:
        config: configuration of the run.
        role: "policy" or "prm".
        checkpoint: folder of the checkpoint; None selects the newest complete one of run_dir.
        output: folder to write; must not exist.
        dtype: "keep", "fp32", "bf16" or "fp16".
        num_workers: processes.
        logits: also load both models and compare their log-probs on a short sequence.

    Raises:
        ValueError: there is no such checkpoint or role, it is damaged, `output` exists, or the log-probs differ.
    """
    progress = Progress()
    source = role_folder(config, role, checkpoint)
    convert_role(config, source, output, dtype, num_workers, progress)
    if logits:
        difference = compare_logits(output, source, tolerance_of(dtype))
        progress.line(f"largest difference of log-probs: {difference:.3g}")
    progress.line(f"{role} of {source.parent} written to {output}")
