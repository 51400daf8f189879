"""`python -m megatron_prime`, which is also what torchrun starts on each rank."""

import sys

from megatron_prime.cli import main

if __name__ == "__main__":
    sys.exit(main())
