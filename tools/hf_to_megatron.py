"""Convert a Hugging Face checkpoint to Megatron's distributed format (torch_dist) without loading the model.

    python tools/hf_to_megatron.py MODEL OUTPUT [--workers 8] [--compare-logits]

OUTPUT can be used as `model.path` of a run, and as --load of Megatron-LM (--ckpt-format torch_dist), with any parallel
layout. Each worker holds one tensor in memory. After an interruption the same command resumes. Exit code 2 means that
the input cannot be converted; the message says why.
"""

import argparse
import sys

from megatron_prime.conversion.command_line import conversion_parser, run_tool
from megatron_prime.conversion.logits import compare_logits
from megatron_prime.conversion.to_megatron import hf_to_megatron
from megatron_prime.hf.weight_files import RELEASE
from megatron_prime.observability.progress import Progress


def main() -> int:
    """Run the command line and return its exit code."""
    parser = conversion_parser(__doc__, "model", "HF checkpoint folder", default_file_mib=2048)
    return run_tool("hf_to_megatron", parser.parse_args(), convert)


def convert(options: argparse.Namespace, progress: Progress) -> float | None:
    """Convert, and return the largest difference of log-probs if --compare-logits is given."""
    hf_to_megatron(
        options.source,
        options.output,
        num_workers=options.workers,
        max_file_bytes=options.file_mib << 20,
        progress=progress,
    )
    return compare_logits(options.source, options.output / RELEASE) if options.compare_logits else None


if __name__ == "__main__":
    sys.exit(main())
