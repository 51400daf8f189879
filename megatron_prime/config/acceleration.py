"""FP8 and overlap together, as the model builder takes them."""

from megatron_prime.config.section import Section
from megatron_prime.config.tables.fp8 import Fp8Config
from megatron_prime.config.tables.overlap import OverlapConfig


class AccelerationConfig(Section):
    """The tables [fp8] and [overlap], which models and optimizers take together."""

    fp8: Fp8Config = Fp8Config()
    overlap: OverlapConfig = OverlapConfig()
