"""The resumable commands of a run: where each keeps its metrics and checkpoints, and how long it trains."""

from dataclasses import dataclass
from pathlib import Path

RESUMABLE = ("train", "sft", "train_prm")
"""The commands that save when they are asked to stop, and that the same command line resumes."""


@dataclass(frozen=True)
class Stage:
    """A resumable command of a run: one of RESUMABLE."""

    command: str
    folder: Path
    """Folder of its metrics and checkpoints, of its own within a run_dir, so that none takes up another's."""
    num_steps: int
    eval_every: int
    role: str = "policy"
    """The model that it writes."""
    output: Path | None = None
    """Folder of the HF checkpoint that it writes at its end; None for none."""

    @property
    def is_offline(self) -> bool:
        """True if it trains on files and samples nothing."""
        return self.command != "train"
