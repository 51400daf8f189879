"""The `megatron-prime` command; the one place where engines, transports and platforms are chosen."""

from megatron_prime.cli.main import main

__all__ = ["main"]
