"""Conversion of one model (role) of a training checkpoint to HF format."""

from pathlib import Path

from megatron_prime.config.run import PrimeConfig
from megatron_prime.conversion.to_hf import DTYPES, megatron_to_hf
from megatron_prime.observability.progress import Progress
from megatron_prime.preflight.prm_training import record_of
from megatron_prime.training.checkpoint.folder import complete, read_run

MAX_FILE_BYTES = 5 * 10**9
"""Size limit of a safetensors file, as Hugging Face libraries choose it by default."""


def role_folder(config: PrimeConfig, role: str, checkpoint: Path | None) -> Path:
    """Return the folder of a role in a checkpoint, by default in the newest complete checkpoint of run_dir.

    Raises:
        ValueError: there is no such checkpoint or role.
    """
    if checkpoint is None:
        found = complete(config.run_dir / "checkpoints")
        if not found:
            raise ValueError(f"{config.run_dir / 'checkpoints'} holds no complete checkpoint")
        checkpoint = found[-1]
    roles = read_run(checkpoint)["roles"]
    if role not in roles:
        raise ValueError(f"{checkpoint} has no {role}; it has {', '.join(roles)}")
    return checkpoint / role


def convert_role(
    config: PrimeConfig, source: Path, output: Path, dtype: str, num_workers: int, progress: Progress
) -> None:
    """Write the model in `source`, a folder of `role_folder`, as an HF checkpoint, without building the model.

    A PRM also gets the record of `hf.prm_record`, as that of `train-prm`, unless it is a critic or its reference
    followed the policy (reference.mode = "policy"), so that no folder holds it.

    Args:
        config: configuration of the run.
        source: folder of the role, named after it.
        output: folder to write; must not exist.
        dtype: a key of `DTYPES`.
        num_workers: processes.
        progress: reports the progress.

    Raises:
        ValueError: the checkpoint is damaged, `output` exists, or the reference of a PRM cannot be read.
    """
    is_prm = source.name == "prm"
    # A reference that is missing is found before the weights are written.
    has_reference = is_prm and config.reference.mode == "freeze" and not config.prm.is_critic
    record = record_of(config) if has_reference else None
    companions = config.prm_path if is_prm else config.model.path
    megatron_to_hf(
        source,
        companions,
        output,
        dtype=DTYPES[dtype],
        num_workers=num_workers,
        max_file_bytes=MAX_FILE_BYTES,
        progress=progress,
    )
    if record is not None:
        record.write(output)
