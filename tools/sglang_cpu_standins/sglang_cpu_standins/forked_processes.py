"""SGLang plugin: without a GPU, the scheduler and the detokenizer are forks of the server's main process.

SGLang spawns them, because a process that has used CUDA must not be forked. Each spawned process imports everything
again, which takes most of the time in which a server of a small model starts on a CPU.
"""

import multiprocessing.context

import torch


class _ForkContext(multiprocessing.context.ForkContext):
    """Context that keeps its start method when SGLang asks for another one."""

    def set_start_method(self, *_: object, **__: object) -> None:
        """Do nothing, where the base class raises an error."""


def register() -> None:
    """Replace the context of SGLang's engine. SGLang calls this in each of its processes."""
    if torch.cuda.is_available():
        return
    from sglang.srt.entrypoints import engine

    engine.mp = _ForkContext()
