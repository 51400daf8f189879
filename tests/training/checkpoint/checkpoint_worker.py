"""Functions that one rank runs in tests/training/checkpoint/test_store.py."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.models.builder import build_model
from megatron_prime.training.checkpoint.folder import RESERVED_BYTES
from megatron_prime.training.checkpoint.store import CheckpointStore, RetentionPolicy, RunState, load_weights
from megatron_prime.training.health.guards import Guards
from tests.support.layout_worker import topology_of, weight_blocks
from tests.support.tiny_models import SHALLOW
from tests.training.training_worker import LOSSES, make_trainable, poisoned_loss

BACKGROUND = ("shallow one", "tp2")
"""Layouts that save in the background and continue training while files are written."""
UPDATES = ([0, 2, 5], [1, 3])
"""Rows of the minibatches of two updates, each of which is one microbatch."""
STREAM = {"epoch": 1, "position": 5}
PACE = {"keep_rate": 0.30000000000000004, "num_short_steps": 2}
EXPERTS = "experts "
"""Before a layout: with the models that are mixtures of experts."""


def of_models(layout, by_role):
    """Return the parts that belong to the models of a layout, by role."""
    prefix = layout.removesuffix(name_of(layout))
    return {role: by_role[prefix + role] for role in ("policy", "prm")}


def name_of(layout):
    """Return the name of a layout in LAYOUTS, without what is before it for the models."""
    return layout.removeprefix(SHALLOW).removeprefix(EXPERTS)


class KilledAfterFirst(dict):
    """A mapping that kills its reader with SIGKILL when it reads the second item."""

    num_read = 0

    def __getitem__(self, key):
        self.num_read += 1
        if self.num_read > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)

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
    """Run two updates of each role."""
    for rows in UPDATES:
        for role, trainable in roles.items():
            batch = batches[role]
            trainable.update(batch["sequences"], rows, LOSSES[role](batch, rows))
            trainable.advance_schedule()


def update_and_skip(roles, batches):
    """Run two updates of each role, with skipped updates of the policy before and after."""
    sequences = batches["policy"]["sequences"]
    roles["policy"].update(sequences, [0, 1], poisoned_loss)
    update(roles, batches)
    roles["policy"].update(sequences, [0, 1], poisoned_loss)


def draw():
    """Draw one number from every random stream."""
    return torch.rand(2).tolist(), random.random(), np.random.rand()


def weights(roles, topology):
    return {role: weight_blocks(trainable.built, topology) for role, trainable in roles.items()}


def optimizer_state(trainable):
    """Return the state besides the weights that the next update depends on, on this rank."""
    moments, settings = [], []
    for inner in (optimizer.optimizer for optimizer in trainable.optimizer.chained_optimizers):
        moments += [
            inner.state[parameter][name].clone()
            for group in inner.param_groups
            for parameter in group["params"]
            for name in ("exp_avg", "exp_avg_sq")
        ]
        settings += [
            {key: value for key, value in group.items() if key != "params"} for group in inner.param_groups
        ]
    return moments, settings, trainable.schedule.state_dict()


def same(one, other):
    """Return whether nested lists, tuples and dicts are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def save_and_resume(layouts, folders, batches, root):
    """Save after two updates; go on, and beside it resume and go on, in the same layout."""
    return {
        (layout, dtype): _save_and_resume(layout, dtype, folders, batches, root) for layout, dtype in layouts
    }


def _save_and_resume(layout, dtype, folders, batches, root):
    folders, batches = of_models(layout, folders), of_models(layout, batches)
    topology = topology_of(name_of(layout), dtype)
    torch.manual_seed(topology.rank)
    random.seed(topology.rank)
    np.random.seed(topology.rank)
    store = CheckpointStore(root / f"{layout} {dtype}", topology, in_background=layout in BACKGROUND)
    report = {"newest of nothing": store.newest()}
    roles = make_roles(folders, topology)
    update_and_skip(roles, batches)
    path = store.save(roles, RunState(3, STREAM, 8, roles["policy"].watch.state_dict(), collector=PACE))
    assert (path is None) == (layout in BACKGROUND)
    report["saved"] = weights(roles, topology)
    at_save = {role: optimizer_state(trainable) for role, trainable in roles.items()}
    draws = draw()
    update_and_skip(roles, batches)
    report["path"] = path or store.finish()
    assert store.finish() is store.poll() is None, "nothing is on its way any more"
    report["faults"] = store.faults(report["path"])

    resumed = make_roles(folders, topology, load_weights=False)
    report["state"] = store.load(store.newest(), resumed)
    resumed["policy"].watch.load_state_dict(report["state"].guards)
    report["loaded alike"] = same(weights(resumed, topology), report["saved"]) and same(
        {role: optimizer_state(trainable) for role, trainable in resumed.items()}, at_save
    )
    report["draws alike"] = same(draw(), draws)
    update_and_skip(resumed, batches)
    report["unbroken"] = weights(roles, topology)
    report["guards"] = [each["policy"].watch.state_dict() for each in (roles, resumed)]
    report["continued alike"] = same(weights(resumed, topology), report["unbroken"]) and same(
        [optimizer_state(trainable) for trainable in resumed.values()],
        [optimizer_state(trainable) for trainable in roles.values()],
    )
    return report


def load_elsewhere(pairs, folders, batches, root):
    """Load what another layout saved: the weights right away, and after two more updates; the weights alone too."""
    report = {}
    for saved_by, layout in pairs:
        topology = topology_of(name_of(layout))
        checkpoint = root / f"{saved_by} fp32" / "step_00000003"
        models = of_models(layout, folders)
        roles = make_roles(models, topology, load_weights=False)
        CheckpointStore(checkpoint.parent, topology).load(checkpoint, roles)
        report[saved_by, layout] = {"loaded": weights(roles, topology)}
        again = CheckpointStore(root / f"{saved_by} again by {layout}", topology).save(
            roles, RunState(3, STREAM, 0)
        )
        report[saved_by, layout]["saved"] = checkpoint, again
        update(roles, of_models(layout, batches))
        report[saved_by, layout]["continued"] = weights(roles, topology)
        alone = build_model(models["prm"], topology, load_weights=False)
        load_weights(alone, checkpoint, "prm", topology)
        report[saved_by, layout]["alone"] = weight_blocks(alone, topology)
    return report


def meet_faults(folders, batches, root):
    """Return the errors that each rank sees, and the contents of a folder after several saves."""
    folders, batches = of_models(SHALLOW, folders), of_models(SHALLOW, batches)
    topology = topology_of("tp2")
    policy = {"policy": make_roles(folders, topology)["policy"]}
    update(policy, batches)
    store = CheckpointStore(root / "faults", topology)
    for step in (1, 2, 3):
        last = store.save(policy, RunState(step, STREAM, 0))
    report = {"kept": sorted(path.name for path in (root / "faults").iterdir())}
    report["newest"] = store.newest().name
    both = make_roles(folders, topology, load_weights=False)
    report["missing role"] = fault(lambda: store.load(last, both))
    report["weights of no role"] = fault(lambda: load_weights(both["prm"].built, last, "prm", topology))
    for name, damage in DAMAGES.items():
        damaged = root / "faults" / name
        if topology.rank == 0:
            shutil.copytree(last, damaged)
            damage(damaged)
        dist.barrier()
        if name not in ONLY_IN_THE_MANIFEST:
            report[name] = fault(lambda: store.load(damaged, policy))  # noqa: B023
    if topology.rank == 0:
        (root / "a file").write_text("")
    dist.barrier()
    blocked = CheckpointStore(root / "a file" / "checkpoints", topology)
    report["no folder"] = fault(lambda: blocked.save(policy, RunState(1, STREAM, 0)))
    report["faults of damaged"] = {name: store.faults(root / "faults" / name) for name in DAMAGES}
    report["sound"] = _look_for_a_sound_one(root / "faults", policy, topology)
    report["best"] = _keep_the_best(root / "best", policy, topology)
    report["no room"] = _save_without_room(store, policy)
    report["full disk"] = [
        _save_to_a_full_disk(root / f"disk {in_background}", policy, topology, in_background)
        for in_background in (False, True)
    ]
    return report


def _look_for_a_sound_one(folder, roles, topology):
    """The newest is damaged, then put back by another save; then all are damaged."""
    store, warnings = CheckpointStore(folder, topology), []
    newest = store.newest()
    report = {"before": store.newest_sound(warn=warnings.append) == newest and not warnings}
    _on_rank_0(topology, lambda: flip_a_byte(newest))
    report["stop"] = fault(lambda: store.newest_sound("stop"))
    report["found"] = store.newest_sound(warn=warnings.append).name
    report["warnings"] = warnings
    report["aside"] = (folder / "damaged_step_00000003" / "run.json").is_file()
    report["saved again"] = store.save(roles, RunState(3, STREAM, 0)) == store.newest_sound() == newest
    report["wedges"] = [_meet_half_a_copy(newest, roles, topology, lost) for lost in LOST]
    _on_rank_0(topology, lambda: [flip_a_byte(path) for path in folder.glob("step_*")])
    report["none"] = fault(lambda: store.newest_sound())
    report["left"] = sorted(path.name for path in folder.glob("step_*"))
    dist.barrier()
    return report


LOST = ("run.json", "manifest.json", "run.json manifest.json", "run.json manifest.json rng.pt policy")
"""Parts that are missing in a folder with the name of the newest checkpoint."""


def _meet_half_a_copy(sound, roles, topology, lost):
    """A folder of step 4 that lacks parts is found at a start, and one more appears before the step's save."""
    parents = [sound.parent.with_name(f"{name} {lost}") for name in ("half", "alone")]
    store, alone = (CheckpointStore(parent, topology) for parent in parents)
    report, warnings = {"warnings": []}, []

    def put(parent):
        half = parent / "step_00000004"
        shutil.copytree(sound, half)
        for name in lost.split():
            shutil.rmtree(half / name) if (half / name).is_dir() else (half / name).unlink()

    _on_rank_0(topology, lambda: shutil.copytree(sound, parents[0] / sound.name))
    _on_rank_0(topology, lambda: put(parents[0]))
    report["stop"] = fault(lambda: store.newest_sound("stop"))
    report["found"] = store.newest_sound(warn=report["warnings"].append).name
    report["aside"] = (parents[0] / "damaged_step_00000004").is_dir()
    _on_rank_0(topology, lambda: put(parents[0]))
    store.save(roles, RunState(4, STREAM, 0))
    report["saved"] = store.newest_sound().name
    _on_rank_0(topology, lambda: put(parents[1]))
    report["alone"] = fault(lambda: warnings.append(alone.newest_sound(warn=warnings.append)))
    report["alone warnings"] = warnings
    return report


def _keep_the_best(folder, roles, topology):
    store = CheckpointStore(folder, topology, RetentionPolicy(last=1, best=1))
    kept = []
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, None), (4, 0.7), (5, 0.9)):
        store.save(roles, RunState(step, STREAM, 0, accuracy=accuracy))
        kept.append(sorted(int(path.name[-2:]) for path in folder.iterdir()))
        dist.barrier()
    return kept


def _on_rank_0(topology, action):
    dist.barrier()
    if topology.rank == 0:
        action()
    dist.barrier()


def _save_to_a_full_disk(folder, roles, topology, in_background):
    """A file system with room for the first checkpoint and not for the second; None where we may not mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    folder.mkdir(exist_ok=True)
    may_mount = [None]
    if topology.rank == 0:
        may_mount[0] = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    dist.broadcast_object_list(may_mount)
    if not may_mount[0]:
        return None
    try:
        store = CheckpointStore(folder / "checkpoints", topology, in_background=in_background)
        store.save(roles, RunState(1, STREAM, 0))
        first = store.finish() or store.newest()
        # What remains: the room that is held for small files, and too little for the rest.
        free = shutil.disk_usage(folder).free
        _on_rank_0(topology, lambda: (folder / "other").write_bytes(bytes(free - RESERVED_BYTES - 2**17)))

        def save():
            store.save(roles, RunState(2, STREAM, 0))
            store.finish()

        told = fault(save)
        report = {"fault": told, "sound": store.newest_sound() == first}
        dist.barrier()  # rank 0 removes what was torn
        report["left"] = sorted(path.name for path in (folder / "checkpoints").iterdir())
        _on_rank_0(topology, (folder / "other").unlink)
        report["next"] = fault(save)
    finally:
        _on_rank_0(topology, lambda: subprocess.run(["umount", "--lazy", str(folder)], check=True))
    return report


def flip_a_byte(checkpoint):
    """Corrupt bytes in the middle of a shard."""
    path = sorted((checkpoint / "policy").glob("*.distcp"))[-1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _save_without_room(store, roles):
    """Simulate a full disk by a limit on the size of a file."""
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
    "random states of another version": lambda folder: torch.save(Fraction(1, 2), folder / "rng.pt"),
    "random states cut short": lambda folder: _cut(folder / "rng.pt"),
    "byte flipped": lambda folder: flip_a_byte(folder),
    "manifest removed": lambda folder: (folder / "manifest.json").unlink(),
    "manifest entry lost": lambda folder: _lose_entry(folder, "policy/.metadata"),
    "run.json empty": lambda folder: (folder / "run.json").write_text(""),
}


ONLY_IN_THE_MANIFEST = ("byte flipped", "manifest removed", "manifest entry lost")
"""Damages that a load alone does not notice."""


def _lose_entry(folder: Path, name: str):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))


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
    folders, batches = of_models(SHALLOW, folders), of_models(SHALLOW, batches)
    topology = topology_of("one")
    roles = make_roles(folders, topology)
    update(roles, batches)
    store = CheckpointStore(root / moment, topology)
    store.save(roles, RunState(3, STREAM, 0))
    torch.save(weights(roles, topology), root / f"{moment}.pt")
    update(roles, batches)
    if moment == "between the roles":
        roles = KilledAfterFirst(roles)
    stream = KilledAfterFirst(STREAM) if moment == "before run.json" else STREAM
    if moment == "in the background":
        CheckpointStore(root / moment, topology, in_background=True).save(roles, RunState(6, stream, 0))
        os.kill(os.getpid(), signal.SIGKILL)
    store.save(roles, RunState(6, stream, 0))
    raise AssertionError("the process should be dead")


def resume_after_death(moments, folders, root):
    """Return what a new process finds, loads and leaves behind."""
    folders, topology = of_models(SHALLOW, folders), topology_of("one")
    report = {}
    for moment in moments:
        store = CheckpointStore(root / moment, topology)
        found = sorted(path.name for path in (root / moment).iterdir())
        roles = make_roles(folders, topology, load_weights=False)
        newest = store.newest()
        state = store.load(newest, roles)
        store.tidy()
        tidied = sorted(path.name for path in (root / moment).iterdir())
        alike = same(weights(roles, topology), torch.load(root / f"{moment}.pt"))
        store.save(roles, RunState(6, STREAM, 0))
        left = sorted(path.name for path in (root / moment).iterdir())
        report[moment] = {
            "found": found,
            "tidied": tidied,
            "step": state.step_index,
            "alike": alike,
            "left": left,
        }
    return report


def two_processes(layouts, pairs, folders, batches, root):
    """Run all cases that need two processes."""
    return {
        "same": save_and_resume(layouts, folders, batches, root),
        "elsewhere": load_elsewhere(pairs, folders, batches, root),
        "faults": meet_faults(folders, batches, root),
    }


def four_processes(pair, folders, batches, root):
    """Run a pair of layouts of four processes."""
    return {
        "same": save_and_resume([(pair[0], "fp32")], folders, batches, root),
        "elsewhere": load_elsewhere([pair], folders, batches, root),
    }


def one_process(layouts, pairs, moments, folders, batches, root):
    """Run all cases that need one process."""
    return {
        "same": save_and_resume(layouts, folders, batches, root),
        "elsewhere": load_elsewhere(pairs, folders, batches, root),
        "death": resume_after_death(moments, folders, root),
    }
