"""What one rank does in the tests of tests/training/test_checkpoint.py."""

import os
import random
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from layout_worker import topology_of, weight_blocks
from training_worker import LOSSES, make_trainable, poisoned_loss

from megatron_prime.config.schema import GuardsConfig
from megatron_prime.models.builder import build_model
from megatron_prime.training.checkpoint import CheckpointStore, RunState, load_weights
from megatron_prime.training.guards import Guards

UPDATES = ([0, 2, 4, 6], [1, 3, 5], [0, 5])
STREAM = {"epoch": 1, "position": 5}


class KilledAfterFirst(dict):
    """A mapping whose reader dies by SIGKILL when it asks for the second item."""

    def items(self):
        yield from list(super().items())[:1]
        os.kill(os.getpid(), signal.SIGKILL)


def make_roles(folders, topology, load_weights=True):
    """Policy and PRM with different models, schedules and learning rates, under one pair of guards."""
    roles = {
        "policy": make_trainable(
            folders["policy"], topology, load_weights=load_weights, lr_decay="cosine", lr_warmup_steps=2
        ),
        "prm": make_trainable(
            folders["prm"], topology, load_weights=load_weights, role="prm", weight_decay=0.1, lr=2e-3
        ),
    }
    guards = Guards(GuardsConfig(), Path("unused"), False, lambda _: None)
    for trainable in roles.values():
        trainable.watch = guards
    return roles


def update(roles, batches):
    """Three updates of each role, with skipped ones of the policy before and after them."""
    policy = roles["policy"]
    policy.update(batches["policy"]["sequences"], [0, 1], poisoned_loss)
    for rows in UPDATES:
        for role, trainable in roles.items():
            batch = batches[role]
            trainable.update(batch["sequences"], rows, LOSSES[role](batch, rows))
            trainable.advance_schedule()
    policy.update(batches["policy"]["sequences"], [0, 1], poisoned_loss)


def draw():
    """One number of every random stream."""
    return torch.rand(2).tolist(), random.random(), np.random.rand()


def weights(roles, topology):
    return {role: weight_blocks(trainable.built, topology) for role, trainable in roles.items()}


def optimizer_state(trainable):
    """Everything that the next update depends on besides the weights, on this rank."""
    (optimizer,) = trainable.optimizer.chained_optimizers
    inner = optimizer.optimizer
    moments = [
        inner.state[parameter][name].clone()
        for group in inner.param_groups
        for parameter in group["params"]
        for name in ("exp_avg", "exp_avg_sq")
    ]
    settings = [
        {key: value for key, value in group.items() if key != "params"} for group in inner.param_groups
    ]
    return moments, settings, trainable.schedule.state_dict()


def same(one, other):
    """Bit-equal, through lists, tuples and dicts."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def save_and_resume(layouts, folders, batches, root):
    """Save after three updates; go on, and beside it resume and go on, in the same layout."""
    return {
        (layout, dtype): _save_and_resume(layout, dtype, folders, batches, root) for layout, dtype in layouts
    }


def _save_and_resume(layout, dtype, folders, batches, root):
    topology = topology_of(layout, dtype)
    torch.manual_seed(topology.rank)
    random.seed(topology.rank)
    np.random.seed(topology.rank)
    store = CheckpointStore(root / f"{layout} {dtype}", keep_last=2, topology=topology)
    report = {"newest of nothing": store.newest()}
    roles = make_roles(folders, topology)
    update(roles, batches)
    report["path"] = store.save(roles, RunState(3, STREAM, 8, roles["policy"].watch.state_dict()))
    report["saved"] = weights(roles, topology)
    at_save = {role: optimizer_state(trainable) for role, trainable in roles.items()}
    draws = draw()
    update(roles, batches)

    resumed = make_roles(folders, topology, load_weights=False)
    report["state"] = store.load(store.newest(), resumed)
    resumed["policy"].watch.load_state_dict(report["state"].guards)
    report["loaded alike"] = same(weights(resumed, topology), report["saved"]) and same(
        {role: optimizer_state(trainable) for role, trainable in resumed.items()}, at_save
    )
    report["draws alike"] = same(draw(), draws)
    update(resumed, batches)
    report["unbroken"] = weights(roles, topology)
    report["guards"] = [each["policy"].watch.state_dict() for each in (roles, resumed)]
    report["continued alike"] = same(weights(resumed, topology), report["unbroken"]) and same(
        [optimizer_state(trainable) for trainable in resumed.values()],
        [optimizer_state(trainable) for trainable in roles.values()],
    )
    return report


def load_elsewhere(pairs, folders, batches, root):
    """Load what another layout saved: the weights right away, and after three more updates; the weights alone too."""
    report = {}
    for saved_by, layout in pairs:
        topology = topology_of(layout)
        checkpoint = root / f"{saved_by} fp32" / "step_00000003"
        roles = make_roles(folders, topology, load_weights=False)
        CheckpointStore(checkpoint.parent, 2, topology).load(checkpoint, roles)
        report[saved_by, layout] = {"loaded": weights(roles, topology)}
        update(roles, batches)
        report[saved_by, layout]["continued"] = weights(roles, topology)
        alone = build_model(folders["prm"], topology, load_weights=False)
        load_weights(alone, checkpoint, "prm")
        report[saved_by, layout]["alone"] = weight_blocks(alone, topology)
    return report


def meet_faults(folders, batches, root):
    """What each rank sees of faults, and what a folder holds after several saves."""
    topology = topology_of("tp2")
    policy = {"policy": make_roles(folders, topology)["policy"]}
    update(policy, batches)
    store = CheckpointStore(root / "faults", keep_last=2, topology=topology)
    for step in (1, 2, 3):
        last = store.save(policy, RunState(step, STREAM, 0))
    report = {"kept": sorted(path.name for path in (root / "faults").iterdir())}
    report["newest"] = store.newest().name
    both = make_roles(folders, topology, load_weights=False)
    report["missing role"] = fault(lambda: store.load(last, both))
    report["weights of no role"] = fault(lambda: load_weights(both["prm"].built, last, "prm"))
    for name, damage in DAMAGES.items():
        damaged = root / "faults" / name
        if topology.rank == 0:
            shutil.copytree(last, damaged)
            damage(damaged)
        dist.barrier()
        report[name] = fault(lambda: store.load(damaged, policy))  # noqa: B023
    if topology.rank == 0:
        (root / "a file").write_text("")
    dist.barrier()
    blocked = CheckpointStore(root / "a file" / "checkpoints", 2, topology)
    report["no folder"] = fault(lambda: blocked.save(policy, RunState(1, STREAM, 0)))
    report["no room"] = _save_without_room(store, policy)
    return report


def _save_without_room(store, roles):
    """A limit on the size of a file stands for a full disk: the writers, which are forked, inherit it."""
    before = store.newest()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        told = fault(lambda: store.save(roles, RunState(99, STREAM, 0)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return {
        "fault": told,
        "kept": store.newest() == before,
        "next": fault(lambda: store.save(roles, RunState(99, STREAM, 0))),
    }


DAMAGES = {
    "role removed": lambda folder: shutil.rmtree(folder / "policy"),
    "shard removed": lambda folder: next((folder / "policy").glob("*.distcp")).unlink(),
    "metadata removed": lambda folder: (folder / "policy" / "metadata.json").unlink(),
    "shard cut short": lambda folder: _cut(next((folder / "policy").glob("*.distcp"))),
    "random states removed": lambda folder: (folder / "rng.pt").unlink(),
    "random states cut short": lambda folder: _cut(folder / "rng.pt"),
    "run.json empty": lambda folder: (folder / "run.json").write_text(""),
}


def _cut(path: Path):
    path.write_bytes(path.read_bytes()[:1000])


def fault(action):
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the test looks at what it is
        return type(error).__name__, str(error)
    return None


def die_while_saving(moment, folders, batches, root):
    """Save step 3 whole, then die in the middle of saving step 6."""
    topology = topology_of("one")
    roles = make_roles(folders, topology)
    update(roles, batches)
    store = CheckpointStore(root / moment, keep_last=2, topology=topology)
    store.save(roles, RunState(3, STREAM, 0))
    torch.save(weights(roles, topology), root / f"{moment}.pt")
    update(roles, batches)
    if moment == "between the roles":
        roles = KilledAfterFirst(roles)
    stream = KilledAfterFirst(STREAM) if moment == "before run.json" else STREAM
    store.save(roles, RunState(6, stream, 0))
    raise AssertionError("the process should be dead")


def resume_after_death(moments, folders, root):
    """What a new process finds, loads and leaves behind."""
    topology = topology_of("one")
    report = {}
    for moment in moments:
        store = CheckpointStore(root / moment, keep_last=2, topology=topology)
        found = sorted(path.name for path in (root / moment).iterdir())
        roles = make_roles(folders, topology, load_weights=False)
        newest = store.newest()
        state = store.load(newest, roles)
        alike = same(weights(roles, topology), torch.load(root / f"{moment}.pt"))
        store.save(roles, RunState(6, STREAM, 0))
        left = sorted(path.name for path in (root / moment).iterdir())
        report[moment] = {"found": found, "step": state.step_index, "alike": alike, "left": left}
    return report


def two_processes(layouts, pairs, folders, batches, root):
    """All that takes two processes."""
    return {
        "same": save_and_resume(layouts, folders, batches, root),
        "elsewhere": load_elsewhere(pairs, folders, batches, root),
        "faults": meet_faults(folders, batches, root),
    }


def one_process(layouts, pairs, moments, folders, batches, root):
    """All that takes one process."""
    return {
        "same": save_and_resume(layouts, folders, batches, root),
        "elsewhere": load_elsewhere(pairs, folders, batches, root),
        "death": resume_after_death(moments, folders, root),
    }
