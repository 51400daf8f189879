"""A checkpoint of policy and PRM: memory on the GPU and on the host while it is written, and an exact continuation."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from megatron_prime.observability.metrics import peak_resident_bytes
from megatron_prime.training.checkpoint.store import CheckpointStore, RunState
from megatron_prime.training.trainable import Trainable
from tools.gpu_checks.lines import Line, Setting, info, judged
from tools.gpu_checks.machine import synchronize
from tools.gpu_checks.roles import Roles, plain_loss, random_sequences, roles, write_shape

EXTRA_GOAL = 0.05
"""GPU memory that a save may take beyond what is there, as a share of the weights and optimizer states."""
SAME_UPDATE = 1e-3
"""Bound on the difference of the next update from the unbroken one's, relative to the update: kernels of a GPU need not
add in the same order each time."""


def checkpoint(setting: Setting) -> Iterator[Line]:
    """Save after an update, load into new models, and compare the next update to that of the models that stayed."""
    model = write_shape(setting, "qwen2.5-0.5b", with_weights=True)
    folder = setting.folder / "checkpoints"
    with roles(setting, model, "platform.dtype=bf16") as built:
        for role in (built.policy, built.prm):
            _update(role, setting)  # creates the optimizer's moments
        optimizer = built.policy.optimizer.chained_optimizers[0].optimizer
        yield info("optimizer", f"{type(optimizer).__module__}.{type(optimizer).__name__}")
        path, lines = _saved(folder, built, setting)
        yield from lines
        saved = _weights(built.policy)
        _update(built.policy, setting)
        unbroken = _weights(built.policy)
    with roles(setting, model, "platform.dtype=bf16", load_weights=False) as built:
        start = time.perf_counter()
        store = CheckpointStore(folder, built.topology)
        store.load(path, {"policy": built.policy, "prm": built.prm})
        synchronize(setting)
        yield info("loading", time.perf_counter() - start, "s")
        yield judged(
            "weights loaded, bit for bit",
            float(torch.equal(_weights(built.policy), saved)),
            "",
            "1",
            torch.equal(_weights(built.policy), saved),
        )
        _update(built.policy, setting)
        resumed = _weights(built.policy)
    moved, apart = (unbroken - saved).norm().item(), (resumed - unbroken).norm().item()
    yield judged("change of the weights by the next update", moved, "", "over 0", moved > 0)
    goal = f"<= {SAME_UPDATE} of the change"
    yield judged(
        "the next update after loading differs by",
        apart / moved,
        "of the change",
        goal,
        apart <= SAME_UPDATE * moved,
    )


def _saved(folder: Path, built: Roles, setting: Setting) -> tuple[Path, list[Line]]:
    """Save policy and PRM; return the checkpoint and the measurements."""
    trained = {"policy": built.policy, "prm": built.prm}
    num_bytes = sum(role.residency.bytes_here() for role in trained.values())
    Path("/proc/self/clear_refs").write_text("5")  # the host's peak starts again from what is in use now
    synchronize(setting)
    before, held = peak_resident_bytes(), _gpu_bytes(setting, torch.cuda.memory_allocated)
    if setting.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    path = CheckpointStore(folder, built.topology).save(trained, RunState(1, {}, 0))
    seconds = time.perf_counter() - start
    assert path is not None, "it is saved in the foreground"
    extra = _gpu_bytes(setting, torch.cuda.max_memory_allocated) - held
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    host = (peak_resident_bytes() - before) / 2**30
    note = f"{extra / 2**30:.3g} GiB beside {num_bytes / 2**30:.3g}"
    return path, [
        info("saving", seconds, "s", f"{size / 2**30:.3g} GiB, {size / seconds / 1e9:.3g} GB/s"),
        info("host memory while saving", host, "GiB", f"a checkpoint of {size / 2**30:.3g} GiB"),
        judged(
            "GPU memory that saving takes",
            extra / num_bytes,
            "of the models",
            f"<= {EXTRA_GOAL}",
            extra <= EXTRA_GOAL * num_bytes,
            note,
            setting.why_no_speed,
        ),
    ]  # fmt: skip


def _gpu_bytes(setting: Setting, read: Callable[[], int]) -> int:
    return read() if setting.is_cuda else 0


def _update(role: Trainable, setting: Setting) -> None:
    vocab_size = role.built.shape.vocab_size
    sequences = random_sequences(vocab_size, 4, 16, 48 if setting.is_tiny else 240)
    role.update(sequences, range(len(sequences)), plain_loss)


def _weights(role: Trainable) -> torch.Tensor:
    """Return all weights as one vector in host memory."""
    with torch.no_grad():
        return torch.cat([weight.float().cpu().flatten() for weight in role.built.module.parameters()])
