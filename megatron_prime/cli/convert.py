"""`megatron-prime convert`."""

import json
from pathlib import Path

import torch

from megatron_prime.config.run import PrimeConfig
from megatron_prime.conversion.logits import CAST_TOLERANCE, TOLERANCE, compare_logits
from megatron_prime.conversion.to_hf import megatron_to_hf
from megatron_prime.observability import Progress
from megatron_prime.observability.durable import replace_file
from megatron_prime.training.checkpoint.folder import complete, read_run

REWARD_MODEL = "reward_model.json"
DTYPES = {"keep": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_FILE_BYTES = 5 * 10**9


def convert(
    config: PrimeConfig,
    role: str,
    checkpoint: Path | None,
    output: Path,
    dtype: str = "keep",
    num_workers: int = 1,
    logits: bool = False,
) -> None:
    """Write a role of a training checkpoint as an HF checkpoint, a chunk at a time; no model is built.

    A PRM gets a `reward_model.json` that says with which reference and beta its log-ratio is a reward. With `logits`
    the result is run beside Megatron's model of the same checkpoint. Raises ValueError when there is no such checkpoint
    or role, when it is damaged, or when `output` exists.
    """
    found = complete(config.run_dir / "checkpoints")
    if checkpoint is None and not found:
        raise ValueError(f"{config.run_dir / 'checkpoints'} holds no complete checkpoint")
    checkpoint = checkpoint or found[-1]
    roles = read_run(checkpoint)["roles"]
    if role not in roles:
        raise ValueError(f"{checkpoint} has no {role}; it has {', '.join(roles)}")
    progress = Progress()
    companions = config.prm_path if role == "prm" else config.model.path
    megatron_to_hf(
        checkpoint / role,
        companions,
        output,
        dtype=DTYPES[dtype],
        num_workers=num_workers,
        max_file_bytes=MAX_FILE_BYTES,
        progress=progress,
    )
    if role == "prm":
        reward = {
            "beta": config.prm.beta,
            "reference": str(config.reference_path),
            "reward": "beta * (log p - log p_reference)",
        }
        replace_file(output / REWARD_MODEL, json.dumps(reward, indent=1) + "\n")
    if logits:
        tolerance = TOLERANCE if dtype == "keep" else CAST_TOLERANCE
        difference = compare_logits(output, checkpoint / role, tolerance)
        progress.line(f"largest difference of log-probs: {difference:.3g}")
    progress.line(f"{role} of {checkpoint} written to {output}")
