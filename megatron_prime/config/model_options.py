"""The tables of the configuration that models and their optimizers take together."""

from megatron_prime.config.megatron.schema import MegatronConfig
from megatron_prime.config.section import Section
from megatron_prime.config.tables.performance.fp8 import Fp8Config
from megatron_prime.config.tables.performance.overlap import OverlapConfig


class ModelOptions(Section):
    """Settings of the models of a run besides layout and memory: the tables [fp8], [overlap] and [megatron]."""

    fp8: Fp8Config = Fp8Config()
    """Precision of the matrix products, by role."""
    overlap: OverlapConfig = OverlapConfig()
    """Communication that overlaps with computation."""
    megatron: MegatronConfig = MegatronConfig()
    """Fields that are passed to megatron-core unchanged."""
