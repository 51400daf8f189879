"""Convert a Megatron checkpoint (torch_dist) of any parallel layout to Hugging Face format without loading the model.

    python tools/megatron_to_hf.py CHECKPOINT OUTPUT [--hf MODEL] [--dtype bf16] [--workers 8]

CHECKPOINT is a folder with `.metadata`: a role of a run's checkpoint (run_dir/checkpoints/step_.../policy), an
iteration of Megatron-LM, or the output of hf_to_megatron.py (the folder, or its release/). --hf names the HF folder
with the config, tokenizer and generation config to copy; the output of hf_to_megatron.py contains its own. Each worker
holds one stored chunk in memory. After an interruption the same command resumes. Exit code 2 means that the input
cannot be converted; the message says why.
"""

import argparse
import sys
from pathlib import Path

from megatron_prime.conversion.command_line import conversion_parser, run_tool
from megatron_prime.conversion.logits import compare_logits, tolerance_of
from megatron_prime.conversion.to_hf import DTYPES, megatron_to_hf
from megatron_prime.hf.weight_files import megatron_weights
from megatron_prime.observability.progress import Progress


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


def main() -> int:
    """Run the command line and return its exit code."""
    parser = conversion_parser(
        __doc__, "checkpoint", "folder of a Megatron checkpoint", default_file_mib=4768
    )
    parser.add_argument("--hf", type=Path, help="HF folder with config and tokenizer")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="keep", help="data type of the output; keep: as stored"
    )
    return run_tool("megatron_to_hf", parser.parse_args(), convert)


def convert(options: argparse.Namespace, progress: Progress) -> float | None:
    """Convert, and return the largest difference of log-probs if --compare-logits is given."""
    weights, companions = resolve_folders(options.source, options.hf)
    megatron_to_hf(
        weights,
        companions,
        options.output,
        dtype=DTYPES[options.dtype],
        num_workers=options.workers,
        max_file_bytes=options.file_mib << 20,
        progress=progress,
    )
    if not options.compare_logits:
        return None
    return compare_logits(options.output, weights, tolerance_of(options.dtype))


if __name__ == "__main__":
    sys.exit(main())
