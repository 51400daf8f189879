"""Write a Megatron checkpoint (torch_dist), of any layout, as a Hugging Face checkpoint, without loading the model.

    python tools/megatron_to_hf.py CHECKPOINT OUTPUT [--hf MODEL] [--dtype bf16] [--workers 8]

CHECKPOINT is a folder with `.metadata`: a role of a run's checkpoint (run_dir/checkpoints/step_.../policy), an
iteration of Megatron-LM, or what hf_to_megatron.py wrote (the folder, or its release/). --hf names the HF folder whose
config, tokenizer and generation config go along; what hf_to_megatron.py wrote has its own. Memory: one stored chunk a
worker.
After a kill the same command goes on where it was. Exit code 2 says what does not fit.
"""

import argparse
import sys
from pathlib import Path

import torch

from megatron_prime.conversion.logits import CAST_TOLERANCE, TOLERANCE, compare_logits
from megatron_prime.conversion.to_hf import megatron_to_hf
from megatron_prime.hf.weight_files import megatron_weights
from megatron_prime.observability.progress import Progress

DTYPES = {"keep": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def places(checkpoint: Path, companions: Path | None) -> tuple[Path, Path]:
    """(folder of the weights, folder of the config). Raises ValueError when there is no config to be found."""
    weights = megatron_weights(checkpoint) or checkpoint
    for folder in (companions, checkpoint, checkpoint.parent):
        if folder is not None and (folder / "config.json").is_file():
            return weights, folder
    raise ValueError(f"{checkpoint} has no config.json beside it: name the HF folder of its model with --hf")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--hf", type=Path, help="HF folder with config and tokenizer")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="keep")
    parser.add_argument("--workers", type=int, default=1, help="processes; each holds one chunk")
    parser.add_argument("--file-mib", type=int, default=4768, help="size of a safetensors file, about")
    parser.add_argument(
        "--compare-logits", action="store_true", help="run both models on a short sequence, in memory"
    )
    options = parser.parse_args()
    progress = Progress()
    try:
        weights, companions = places(options.checkpoint, options.hf)
        megatron_to_hf(
            weights,
            companions,
            options.output,
            dtype=DTYPES[options.dtype],
            num_workers=options.workers,
            max_file_bytes=options.file_mib << 20,
            progress=progress,
        )
        if options.compare_logits:
            tolerance = TOLERANCE if options.dtype == "keep" else CAST_TOLERANCE
            difference = compare_logits(options.output, weights, tolerance)
            progress.line(f"largest difference of log-probs: {difference:.3g}")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"megatron_to_hf: {error}", file=sys.stderr)
        return 2
    progress.line(f"{options.checkpoint} written to {options.output}, every tensor read back and equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
