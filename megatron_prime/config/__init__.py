"""Configuration: schema, loading with overrides, and checks that need no framework."""

from megatron_prime.config.loading import ConfigError, load_config
from megatron_prime.config.run import PrimeConfig

__all__ = ["ConfigError", "PrimeConfig", "load_config"]
