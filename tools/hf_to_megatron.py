"""Write a Hugging Face checkpoint in Megatron's format (torch_dist), for any layout, without loading the model.

    python tools/hf_to_megatron.py MODEL OUTPUT [--workers 8] [--compare-logits]

OUTPUT can be `model.path` of a run, and --load of Megatron-LM (--ckpt-format torch_dist). Memory: one tensor a worker.
After a kill the same command goes on where it was. Exit code 2 says what does not fit.
"""

import argparse
import sys
from pathlib import Path

from megatron_prime.conversion.logits import compare_logits
from megatron_prime.conversion.to_megatron import hf_to_megatron
from megatron_prime.hf.weight_files import RELEASE
from megatron_prime.observability.progress import Progress


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="HF checkpoint folder")
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--workers", type=int, default=1, help="processes; each holds one tensor")
    parser.add_argument("--file-mib", type=int, default=2048, help="size of a data file, about")
    parser.add_argument(
        "--compare-logits", action="store_true", help="run both models on a short sequence, in memory"
    )
    options = parser.parse_args()
    progress = Progress()
    try:
        hf_to_megatron(
            options.model,
            options.output,
            num_workers=options.workers,
            max_file_bytes=options.file_mib << 20,
            progress=progress,
        )
        if options.compare_logits:
            difference = compare_logits(options.model, options.output / RELEASE)
            progress.line(f"largest difference of log-probs: {difference:.3g}")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"hf_to_megatron: {error}", file=sys.stderr)
        return 2
    progress.line(f"{options.model} written to {options.output}, every tensor read back and equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
