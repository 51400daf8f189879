"""The [checkpoint] table: saving and resuming."""

from typing import Literal

from megatron_prime.config.section import NonNegative, Positive, Section


class CheckpointConfig(Section):
    """The interval and the retention of checkpoints, and the way a run resumes."""

    save_every: NonNegative | Literal["auto"] = "auto"
    """Trainer steps between checkpoints. auto saves after the first step, and then whenever 20 times the duration of a
    save has passed (at least 30 s, at most an hour). The last step is always saved, and with 0 only that."""
    keep_last: Positive = 2
    """Number of newest complete checkpoints to keep."""
    keep_best: NonNegative = 1
    """Number of checkpoints with the highest held-out accuracy to keep in addition, among those of evaluated steps."""
    async_save: bool = False
    """Write checkpoints in the background while training continues; needs host memory for a copy of a rank's part."""
    on_damage: Literal["fallback", "stop"] = "fallback"
    """Reaction to a damaged newest checkpoint: fallback sets it aside and resumes from the previous one; stop ends."""
    on_write_error: Literal["stop", "continue"] = "stop"
    """Reaction to a checkpoint that cannot be written, such as on a full disk: stop ends the run; continue warns and
    trains on. The last checkpoint must be written in any case."""
    resume: Literal["auto", "never"] = "auto"
    """auto continues from the newest complete checkpoint of run_dir; never refuses a run_dir that has one."""
    export_hf: bool = True
    """Write the final policy as an HF checkpoint to run_dir/hf."""
