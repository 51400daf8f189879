"""The commands `megatron-prime hf-to-megatron` and `megatron-prime megatron-to-hf`."""

from pathlib import Path

from megatron_prime.cli.arguments import Options
from megatron_prime.conversion.logits import compare_logits, tolerance_of
from megatron_prime.conversion.to_hf import DTYPES
from megatron_prime.conversion.to_hf import megatron_to_hf as write_hf
from megatron_prime.conversion.to_megatron import hf_to_megatron as write_megatron
from megatron_prime.hf.weight_files import RELEASE, megatron_weights
from megatron_prime.observability.progress import Progress


def hf_to_megatron(options: Options) -> None:
    """Convert an HF checkpoint to Megatron's distributed format without loading the model.

    Raises:
        ValueError: the checkpoint cannot be converted, or the output exists.
    """
    progress = Progress()
    write_megatron(
        options.source,
        options.output,
        num_workers=options.workers,
        max_file_bytes=options.file_mib << 20,
        progress=progress,
    )
    if options.compare_logits:
        _report_difference(progress, compare_logits(options.source, options.output / RELEASE))
    _report_end(progress, options)


def megatron_to_hf(options: Options) -> None:
    """Convert a Megatron checkpoint of any parallel layout to HF format without loading the model.

    Raises:
        ValueError: the checkpoint cannot be converted, has no config, or the output exists.
    """
    progress = Progress()
    weights, companions = resolve_folders(options.source, options.hf)
    write_hf(
        weights,
        companions,
        options.output,
        dtype=DTYPES[options.dtype],
        num_workers=options.workers,
        max_file_bytes=options.file_mib << 20,
        progress=progress,
    )
    if options.compare_logits:
        difference = compare_logits(options.output, weights, tolerance_of(options.dtype))
        _report_difference(progress, difference)
    _report_end(progress, options)


def resolve_folders(checkpoint: Path, hf_folder: Path | None) -> tuple[Path, Path]:
    """Return (folder of the weights, folder of the config); `hf_folder` takes precedence for the config.

    Raises:
        ValueError: no folder has a config.json.
    """
    weights = megatron_weights(checkpoint) or checkpoint
    for folder in (hf_folder, checkpoint, checkpoint.parent):
        if folder is not None and (folder / "config.json").is_file():
            return weights, folder
    raise ValueError(f"{checkpoint} has no config.json beside it: name the HF folder of its model with --hf")


def _report_difference(progress: Progress, difference: float) -> None:
    progress.line(f"largest difference of log-probs: {difference:.3g}")


def _report_end(progress: Progress, options: Options) -> None:
    progress.line(f"{options.source} written to {options.output}, every tensor read back and equal")
