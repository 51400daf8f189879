"""[checkpoint]: saving and resuming."""

from typing import Literal

from megatron_prime.config.section import NonNegative, Positive, Section


class CheckpointConfig(Section):
    """Saving and resuming."""

    save_every: NonNegative = 0
    """Save every so many steps and at the end; 0 at the end only."""
    keep_last: Positive = 2
    """Newest complete checkpoints to keep."""
    keep_best: NonNegative = 1
    """Checkpoints of the highest held-out accuracy to keep besides, of those saved at a step that was evaluated."""
    async_save: bool = False
    """Write checkpoints while training goes on; costs host memory for a copy of what a rank writes."""
    on_damage: Literal["fallback", "stop"] = "fallback"
    """When the newest checkpoint is damaged: set it aside and resume from the one before, or stop."""
    on_write_error: Literal["stop", "continue"] = "stop"
    """When a checkpoint cannot be written (a full disk): stop, or warn and train on; the last one must be written."""
    resume: Literal["auto", "never"] = "auto"
    """auto continues from the newest complete checkpoint."""
    export_hf: bool = True
    """Write the final policy as an HF checkpoint to run_dir/hf."""
