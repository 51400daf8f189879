"""Functions that one rank runs in the tests of offloading and activation recomputation."""

import torch
import torch.distributed as dist

from megatron_prime.config.optimizer import OptimizerConfig
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.performance.memory import MemoryConfig
from megatron_prime.config.tables.policy import PolicyConfig
from megatron_prime.models.forward import ScoringSettings
from megatron_prime.observability.metrics import Metrics
from megatron_prime.training.checkpoint.store import CheckpointStore, RunState
from megatron_prime.training.phase_memory import PhaseMemory
from megatron_prime.training.roles import build_roles
from megatron_prime.training.trainable import RoleSpec, Scorer, Trainable
from tests.support.layout_worker import topology_of, weight_blocks
from tests.training.training_worker import LOSSES

OFFLOADED = MemoryConfig(offload_reference=True, offload_prm=True, offload_policy_optimizer=True)
SETTINGS = ScoringSettings(max_tokens_per_microbatch=48, chunk_tokens=16)
NUM_STEPS = 3


def offload_and_recompute(layouts, folder, shallow_folder, batch, root, recomputes):
    """Run all cases together, to start the processes once."""
    return {
        "offload": {layout: offload(*layout, shallow_folder, batch, root) for layout in layouts},
        "recompute": {
            layout: {name: recompute(layout, folder, options) for name, options in recomputes.items()}
            for layout in dict.fromkeys(layout for layout, _ in layouts)
        },
        "modes": {mode: parameters_by_role(folder, mode) for mode in ("freeze", "policy")},
    }


def parameters_by_role(folder, mode):
    """Return the parameters of every model that a run builds on this rank."""
    config = PrimeConfig.model_validate(
        {
            "run_dir": "unused",
            "model": {"path": folder},
            "trainer": {"num_steps": 1},
            "reference": {"mode": mode},
        }
    )
    models = build_roles(config, topology_of("dp2"), load_weights=False)
    roles = {"policy": models.policy, "prm": models.prm, "reference": models.reference}
    return {
        name: sum(parameter.numel() for parameter in role.built.module.parameters())
        for name, role in roles.items()
        if role is not None
    }


class Roles:
    """The policy, PRM and reference roles of one model."""

    def __init__(self, folder, topology, memory, load_weights=True):
        config = OptimizerConfig(lr=1e-3, adam_eps=1e-6)

        def trainable(role):
            return Trainable(RoleSpec(role, folder, SETTINGS, memory), topology, config, 10, load_weights)

        self.trained = {"policy": trainable("policy"), "prm": trainable("prm")}
        self.reference = Scorer(RoleSpec("reference", folder, SETTINGS, memory), topology)
        self.all = {**self.trained, "reference": self.reference}
        for role in self.all.values():
            role.residency.park()

    def step(self, batch):
        """Run a step as the trainer does; return scores and metrics."""
        rows = list(range(len(batch["sequences"])))
        policy, prm = self.trained.values()
        memory = PhaseMemory(
            {name: role.residency for name, role in self.all.items()}, policy.topology.platform
        )
        metrics, facts = Metrics(), []
        with memory.phase(metrics, "logprobs"):
            facts += [policy.score(batch["sequences"]), self.reference.score(batch["sequences"])]
        with memory.phase(metrics, "prm"), prm.resident():
            facts += [
                prm.score(batch["sequences"]),
                prm.update(batch["sequences"], rows, LOSSES["prm"](batch, rows)),
            ]
        with memory.phase(metrics, "policy"), policy.resident():
            for half in (rows[::2], rows[1::2]):
                facts.append(policy.update(batch["sequences"], half, LOSSES["policy"](batch, half)))
        for trainable in self.trained.values():
            trainable.advance_schedule()
        return facts, {name: value for name, value in metrics.items() if name.startswith("memory/")}

    def weights(self, topology):
        blocks = {}
        for name, role in self.all.items():
            with role.resident():
                blocks[name] = [tensor.clone() for *_, tensor in weight_blocks(role.built, topology)]
        return blocks

    def bytes_here(self):
        """Return the bytes of the storages of all tensors on the device."""
        found = {}
        for name, role in self.all.items():
            for part, tensors in role._parts().items():
                storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors.tensors()}
                found[name, part] = sum(storage.nbytes() for storage in storages.values())
        return found


def offload(layout, dtype, folder, batch, root):
    topology = topology_of(layout, dtype)
    plain, offloaded = (Roles(folder, topology, memory) for memory in (MemoryConfig(), OFFLOADED))
    report = {"same": [], "bytes": [], "first": offloaded.bytes_here()}
    for _ in range(NUM_STEPS):
        (expected, plain_memory), (found, memory) = plain.step(batch), offloaded.step(batch)
        report["same"].append(_same(expected, found))
        report["bytes"].append((plain.bytes_here(), offloaded.bytes_here()))
    report["memory"] = (plain_memory, memory)
    report["weights"] = _same(plain.weights(topology), offloaded.weights(topology))
    with offloaded.trained["prm"].resident():
        report["back"] = offloaded.bytes_here()
    report["host"] = {name: role.residency.host_bytes() for name, role in offloaded.all.items()}
    report["gradients of the reference"] = [p.grad for p in offloaded.reference.built.module.parameters()]
    report["reference"] = sum(p.numel() * p.element_size() for p in plain.reference.built.module.parameters())
    report["resumed"] = _resume(folder, topology, batch, root / f"{layout} {dtype}", plain)
    return report


def _resume(folder, topology, batch, root, plain):
    """Run one step, a checkpoint and two steps with everything offloaded; return whether the result equals `plain`."""
    # A checkpoint in the background must contain what the parent offloads right after the fork.
    in_background = topology.sequence_parallel
    store = CheckpointStore(root, topology, in_background=in_background)
    first = Roles(folder, topology, OFFLOADED)
    first.step(batch)
    path = store.save(first.trained, RunState(1, {}, 0))
    if in_background:
        first.step(batch)
        path = store.finish()
    second = Roles(folder, topology, OFFLOADED, load_weights=False)
    store.load(path, second.trained)
    for _ in range(NUM_STEPS - 1):
        second.step(batch)
    return _same(second.weights(topology), plain.weights(topology))


def _same(left, right):
    """Return whether nested lists, tuples, dicts and score records are equal bit for bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if hasattr(left, "logprobs_BT"):
        return _same([left.logprobs_BT, left.entropy_BT], [right.logprobs_BT, right.entropy_BT])
    return left == right


def recompute(layout, folder, options):
    """Return the gradients of a backward pass and its peak bytes beyond weights and gradient buffers."""
    from benchmarks.live_bytes import LiveBytes

    topology = topology_of(layout)
    settings = ScoringSettings(max_tokens_per_microbatch=1024, chunk_tokens=64)
    spec = RoleSpec("policy", folder, settings, MemoryConfig(recompute=options))
    trainable = Trainable(spec, topology, PolicyConfig(), 10)
    generator = torch.Generator().manual_seed(0)
    sequences = [
        (torch.randint(0, 300, (20 + row,), generator=generator).tolist(), [1, 2, 3, row] * 20)
        for row in range(8)
    ]

    def loss(rows_b, logprobs_bT, entropy_bT):
        return (logprobs_bT.sum() + entropy_bT.sum() / 10) / 1000, {}

    for chunk in trainable._ddp:
        chunk.zero_grad_buffer()
    known = [*trainable.built.module.parameters(), *trainable._gradients()]
    with LiveBytes(known) as counted:
        scores, _ = trainable._pass.backward(sequences, range(len(sequences)), loss)
    with torch.no_grad():
        alone = trainable.score(sequences)
    gradients = [buffer.clone() for buffer in trainable._gradients()]
    dist.barrier()
    return {"peak": counted.peak, "scores": scores, "gradients": gradients, "same": _same(scores, alone)}
