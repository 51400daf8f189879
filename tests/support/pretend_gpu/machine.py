"""The switch that turns this process into one with a GPU, for the rest of its life."""

from typing import Any

import torch
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

from megatron_prime.parallel import cpu_shim
from tests.support.pretend_gpu import cuda_calls, groups
from tests.support.pretend_gpu.device_answers import DeviceAnswers
from tests.support.pretend_gpu.operation_watch import OperationWatch

_installed = False


def install() -> None:
    """Pretend that this process has a GPU from now on. Call it before a process group exists.

    The shim for CPUs stays below, since the operations run on a CPU after all.
    """
    global _installed
    if _installed:
        return
    _installed = True
    to_host = MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize
    # The shim's functions of torch would drop the device before a mode sees it; its other patches stay.
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in cpu_shim.cpu_replacements()]
    cpu_shim.install()
    for owner, name, original in originals:
        setattr(owner, name, original)
    cuda_calls.install()
    watch = OperationWatch()
    groups.install(watch.silence)
    # The sizes of experts' shares lie on the device, and the dispatcher fetches them on a stream of its own.
    MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize = to_host
    MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = None
    # The modes stay active for the rest of the process, so they are entered without a matching exit.
    watch.__enter__()
    answers = DeviceAnswers(watch.silence)
    answers.__enter__()
    _answer_in_backward_passes(answers)


def _answer_in_backward_passes(answers: DeviceAnswers) -> None:
    """Let autograd functions find the function modes, which are off while they pass on the call of a backward pass."""
    run: Any = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run_backward(*arguments: Any, **named: Any) -> Any:
        with answers:
            return run(*arguments, **named)

    torch.autograd._engine_run_backward = run_backward  # type: ignore[attr-defined]
