"""The [profile] table: timelines of chosen steps."""

from typing import Annotated

from pydantic import Field

from megatron_prime.config.section import NonNegative, Positive, Section

MAX_STEPS = 16
"""Largest number of captured steps: a trace may have gigabytes before it is compressed, and slows its step down."""


class ProfileConfig(Section):
    """Timelines of chosen steps, in run_dir/profile, for Perfetto (docs/profiling.md); none by default."""

    steps: Annotated[tuple[Positive, ...], Field(max_length=MAX_STEPS)] = ()
    """Numbers of the steps to capture, from 1; at most 16. A captured step is slower."""
    ranks: tuple[NonNegative, ...] = (0,)
    """Ranks that write a timeline. Rank 0 alone knows the SGLang servers."""
    operators: bool = True
    """Capture operators and GPU kernels with torch.profiler, and on a GPU the memory; false keeps phases, engines and
    verifiers, which cost nothing."""
