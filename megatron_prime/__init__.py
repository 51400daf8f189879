"""PRIME (Process Reinforcement through Implicit Rewards, arXiv 2502.01456) on Megatron-core."""

import warnings

# Of every optional package that it lacks, megatron-core says so on import, once a module and rank. The platform's own
# report says it once.
warnings.filterwarnings("ignore", message=r".*\b(Apex|Transformer Engine)\b.*", category=UserWarning)

__version__ = "0.1.0"
