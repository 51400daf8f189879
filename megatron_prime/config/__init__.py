"""Configuration: its tables, loading with overrides, and the checks that need no framework. Imports no torch.

- `run`: `PrimeConfig`, the whole configuration, and the rules between tables
- `tables/`: one file per TOML table, of the same name
- `megatron/`: the [megatron] table and Megatron-LM's arguments
- `stages`: the commands that can be resumed, with their folders and lengths
- `presets`: the [preset] table and the published methods that it names
- `optimizer`: the optimizer settings that the tables of all trained roles share
- `section`: the base class of tables and common field types
- `redaction`: hides credentials and query strings of URLs
- `server_keys`: reads the API keys of attached servers
- `loading`: reads a TOML file and command-line overrides
- `faults`: turns validation errors into messages
- `other_names`: the names that other systems give to our options
- `quiet`: the switch of `--quiet`
- `arithmetic`: batch sizes and numbers of updates that follow from a configuration
- `model_options`: the tables that models and their optimizers take together
"""

from megatron_prime.config.loading import ConfigError, load_config
from megatron_prime.config.run import PrimeConfig

__all__ = ["ConfigError", "PrimeConfig", "load_config"]
