"""A complete training run on a CPU machine; the same as `megatron-prime quickstart`.

    python -m examples.quickstart [section.key=value ...]

The code is in megatron_prime/cli/quickstart.py, the task and the configuration are in megatron_prime/quickstart/.
"""

import sys

from megatron_prime.cli import main

if __name__ == "__main__":
    sys.exit(main(["quickstart", *sys.argv[1:]]))
