"""PRIME (Process Reinforcement through Implicit Rewards, arXiv 2502.01456) on Megatron-core."""

__version__ = "0.1.0"
