"""Functions that one rank runs in the tests of tests/training."""

from dataclasses import replace

import torch
import torch.distributed as dist

from megatron_prime.algorithm.implicit_reward import process_rewards_BT
from megatron_prime.algorithm.prm_objectives.value import value_tokens
from megatron_prime.config.model_options import ModelOptions
from megatron_prime.config.optimizer import OptimizerConfig
from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.config.tables.performance.overlap import OverlapConfig
from megatron_prime.config.tables.policy import PolicyConfig
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.conversion.export import export_hf
from megatron_prime.models.builder import build_model
from megatron_prime.models.forward import ScoringSettings
from megatron_prime.training.health.guards import Guards
from megatron_prime.training.losses import PolicyRowLoss, PRMRowLoss, minibatch_weights_BT
from megatron_prime.training.prm_phase import PRMPhase
from megatron_prime.training.trainable import RoleSpec, Scorer, Trainable
from tests.support.layout_worker import topology_of, weight_blocks
from tests.support.training_batches import BETA

SETTINGS = ScoringSettings(max_tokens_per_microbatch=36, chunk_tokens=5)
"""Maximum tokens per microbatch, so small that all rows of `ragged_batch` need two microbatches."""


OVERLAP = ModelOptions(overlap=OverlapConfig(grad_reduce=True, param_gather=True))


def make_trainable(
    folder, topology, num_steps=10, load_weights=True, role="policy", overlap=False, **optimizer
):
    """Build a role with an optimizer."""
    config = OptimizerConfig(**{"lr": 1e-3, "adam_eps": 1e-6} | optimizer)
    options = OVERLAP if overlap else ModelOptions()
    spec = RoleSpec(role, folder, SETTINGS, options=options)
    return Trainable(spec, topology, config, num_steps, load_weights)


def policy_loss(batch, rows):
    """Return a PPO-clip loss with entropy bonus and KL penalty over the rows of a minibatch."""
    return PolicyRowLoss(
        config=PolicyConfig(**batch["settings"]),
        weights_BT=minibatch_weights_BT(batch["policy_mask"], rows, "token"),
        old_logprobs_BT=batch["old"],
        advantages_BT=batch["advantages"],
        rollout_logprobs_BT=batch["old"],
        ref_logprobs_BT=batch["ref"],
    )


def prm_loss(batch, rows):
    """Return a cross-entropy loss of the implicit reward over the rows of a minibatch."""
    return PRMRowLoss(
        config=PRMConfig(beta=batch["beta"]),
        num_rows=len(rows),
        ref_logprobs_BT=batch["ref"],
        scored_mask_BT=batch["mask"],
        outcome_rewards_B=batch["labels"],
    )


LOSSES = {"policy": policy_loss, "prm": prm_loss}


def poisoned_loss(rows_b, logprobs_bT, entropy_bT):
    """Return a loss that is not finite on the microbatch that holds row 0 alone."""
    value = logprobs_bT.sum()
    return (value * torch.nan if 0 in rows_b.tolist() else value), {}


def train(layouts, jobs):
    """Run each job in each of its layouts; return the metrics of each update and the final weights."""
    return {
        (layout, name): _train(topology_of(layout), **job)
        for layout in layouts
        for name, job in jobs.items()
        if layout in job["layouts"]
    }


def _train(topology, layouts, folder, kind, batch, minibatches, optimizer, num_steps):
    trainable = make_trainable(folder, topology, num_steps, **optimizer)
    report = {"metrics": [], "lr": [], "logprobs": []}
    for rows in minibatches:
        report["lr"].append(trainable.lr)
        scores, metrics = trainable.update(batch["sequences"], rows, LOSSES[kind](batch, rows))
        report["metrics"].append(metrics)
        report["logprobs"].append(scores.logprobs_BT)
        # Skips the all-gather at the end of a step, so that the forward pass of the next update performs it.
        trainable.schedule.step(increment=1)
    trainable.gather_weights()
    report["weights"] = weight_blocks(trainable.built, topology)
    return report


def schedules(folder, configs, num_steps):
    """Return the learning rates of successive trainer steps."""
    topology = topology_of("one")
    rates = {}
    for name, optimizer in configs.items():
        trainable = make_trainable(folder, topology, num_steps, **optimizer)
        rates[name] = []
        for _ in range(num_steps):
            rates[name].append(trainable.lr)
            trainable.advance_schedule()
    return rates


def infinite_gradient(rows_b, logprobs_bT, entropy_bT):
    """Return a finite loss whose gradient overflows on the microbatch that holds row 0 alone."""
    value = logprobs_bT.sum()
    return (1 / (1e-30 + (value - value.detach()) ** 2).sqrt() if 0 in rows_b.tolist() else value), {}


BROKEN_LOSSES = {"loss is NaN": poisoned_loss, "gradient is infinite": infinite_gradient}


def moments(trainable):
    """Return Adam's moments and step counts on this rank."""
    (optimizer,) = trainable.optimizer.chained_optimizers
    inner = optimizer.optimizer
    tensors = [
        inner.state[parameter][name].clone()
        for group in inner.param_groups
        for parameter in group["params"]
        for name in ("exp_avg", "exp_avg_sq")
    ]
    return tensors, [group["step"] for group in inner.param_groups]


def meet_nan(models, rows, root):
    """Run non-finite updates, checked and unchecked, then a finite one, and compare it with an undisturbed model.

    `models` has the folder and the batch of the model of each layout.
    """
    return {
        layout: _meet_nan(topology_of(layout), folder, batch, rows, root / layout)
        for layout, (folder, batch) in models.items()
    }


def _meet_nan(topology, folder, batch, rows, root):
    poisoned, clean = (make_trainable(folder, topology) for _ in range(2))
    for trainable in (poisoned, clean):
        trainable.update(batch["sequences"], rows, policy_loss(batch, rows))
    before, (before_moments, before_steps) = weight_blocks(poisoned.built, topology), moments(poisoned)
    report = {"message": _told(lambda: poisoned.update(batch["sequences"], rows, poisoned_loss))}
    warnings = []
    guards = Guards(GuardsConfig(max_skipped_in_a_row=3), root, topology.rank == 0, warnings.append)
    poisoned.watch = guards
    guards.begin_step(7)
    for name, loss in BROKEN_LOSSES.items():
        _, report[name] = poisoned.update(batch["sequences"], rows, loss)
    after_moments, after_steps = moments(poisoned)
    report["weights unchanged"] = _same(before, weight_blocks(poisoned.built, topology))
    report["moments unchanged"] = before_steps == after_steps and all(
        torch.equal(one, other) for one, other in zip(before_moments, after_moments, strict=True)
    )
    for trainable in (poisoned, clean):
        trainable.update(batch["sequences"], rows, policy_loss(batch, rows))
    report |= {
        "counted": guards.end_step({"policy/grad_norm": float("nan")}),
        "warnings": warnings.copy(),
        "recovers": _same(weight_blocks(poisoned.built, topology), weight_blocks(clean.built, topology)),
        "moved": not _same(before, weight_blocks(poisoned.built, topology)),
    }
    guards.begin_step(8)
    if topology.tensor_rank == 0 and topology.pipeline_rank == 0 and topology.data_rank == 0:
        next(iter(poisoned.built.module.parameters())).data[0] = torch.inf
    report["stops"] = [
        _told(lambda: poisoned.update(batch["sequences"], rows, poisoned_loss)) for _ in range(3)
    ]
    return report


def _told(action):
    try:
        action()
    except FloatingPointError as error:
        return str(error)
    return None


def _same(blocks, others):
    return all(
        torch.equal(tensor, other) for (_, _, _, tensor), (_, _, _, other) in zip(blocks, others, strict=True)
    )


def train_and_meet_nan(layouts, jobs, nan_models, rows, configs, num_steps, root):
    """Run all cases of test_trainable.py, to start the processes once."""
    return {
        "train": train(layouts, jobs),
        "nan": meet_nan(
            {layout: model for layout, model in nan_models.items() if layout in layouts}, rows, root
        ),
        "schedules": schedules(nan_models["one"][0], configs, num_steps) if layouts == ("one",) else None,
    }


def run_prm_phases(layouts, folder, batch, rollout_batch, cases, num_steps):
    """Run each case in each layout; return the results of the phase and separate PRM scores before and after it."""
    report = {}
    for layout in layouts:
        topology = topology_of(layout)
        reference = Scorer(RoleSpec("reference", folder, SETTINGS), topology)
        ref_logprobs_BT = reference.score(batch["sequences"]).logprobs_BT
        tokens = value_tokens(reference.built.shape.vocab_size)
        for name, options in cases.items():
            config = PRMConfig(**{"lr": 1e-3, "adam_eps": 1e-6, "beta": BETA} | options)
            scoring = replace(SETTINGS, value_tokens=tokens) if config.is_critic else SETTINGS
            spec = RoleSpec("prm", folder, scoring)
            if config.update_order == "none":
                prm = Scorer(spec, topology)
            else:
                prm = Trainable(spec, topology, config, num_steps=10)
            phase = PRMPhase(prm, config, seed=3)
            ref_BT = torch.zeros_like(ref_logprobs_BT) if config.is_critic else ref_logprobs_BT
            report[layout, name] = [
                _run_phase(phase, prm, batch, rollout_batch, ref_BT, options, step)
                for step in range(num_steps)
            ]
    return report


def _run_phase(phase, prm, batch, rollout_batch, ref_logprobs_BT, options, step):
    before_BT = prm.score(batch["sequences"]).logprobs_BT
    scored = []
    score, prm.score = prm.score, lambda *arguments: (scored.append(1), score(*arguments))[1]
    result = phase.run(rollout_batch, batch["sequences"], ref_logprobs_BT, step)
    prm.score = score
    masks = rollout_batch.response_mask_BT, rollout_batch.policy_mask_BT
    config = PRMConfig(beta=BETA, scored_tokens=options.get("scored_tokens", "all"))
    return {
        "before": before_BT,
        "reference": ref_logprobs_BT,
        "num_forward": len(scored),
        "result": result.logprobs_BT,
        "after": prm.score(batch["sequences"]).logprobs_BT,
        "metrics": result.metrics,
        "rewards": process_rewards_BT(
            result.logprobs_BT, ref_logprobs_BT, masks[0], config, policy_mask_BT=masks[1]
        ),
    }


def export(layouts, cases, folders, root):
    """Export each (layout, model) of `cases`; return the file system errors of rank 0 as every rank sees them."""
    report = {}
    for layout, name in cases:
        for dtype in ("fp32", "bf16"):
            topology = topology_of(layout, dtype)
            export_hf(
                build_model(folders[name], topology),
                topology,
                folders[name],
                root / f"{layout} {name} {dtype}",
            )
    for layout in layouts:
        topology = topology_of(layout)
        old = build_model(folders["qwen3"], topology)
        new = build_model(folders["qwen3 other"], topology)
        source, place = folders["qwen3"], root / f"{layout} again"
        blocked = root / f"{layout} file"
        blocked.write_text("not a folder") if topology.rank == 0 else None
        export_hf(old, topology, source, place)
        no_config = root / f"{layout} none"
        report[layout] = {
            "exists": _fault(lambda: export_hf(new, topology, source, place)),  # noqa: B023
            "under a file": _fault(lambda: export_hf(new, topology, source, blocked / "deep" / "hf")),  # noqa: B023
            "no companions": _fault(lambda: export_hf(new, topology, no_config, root / f"{layout} lost")),  # noqa: B023
        }
        kept = (place / "model.safetensors").read_bytes()
        dist.barrier()
        export_hf(new, topology, source, place, replace=True)
        report[layout]["replaced"] = kept != (place / "model.safetensors").read_bytes()
    return report


def _fault(action):
    try:
        action()
    except (OSError, ValueError) as error:
        return type(error).__name__, str(error)
    return None


def moments_of_buckets():
    """Return the moments of two buckets, the first one padded, in the checkpoint and in Adam."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_prime.training.trainable import _megatron_optimizer_config, keep_padding_between_buckets

    topology = topology_of("one")
    module = torch.nn.Module()
    for name, size in (("embedding", 7), ("layer", 5)):
        setattr(module, name, torch.nn.Parameter(torch.randn(size)))
    module.embedding.shared_embedding = True
    config = TransformerConfig(num_layers=1, hidden_size=1, num_attention_heads=1)
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
    ddp = DistributedDataParallel(config, settings, module)
    keep_padding_between_buckets(ddp)
    optimizer = get_megatron_optimizer(
        _megatron_optimizer_config(OptimizerConfig(lr=1e-3), topology, ModelOptions(), "policy"),
        [ddp],
    )
    for parameter in module.parameters():
        parameter.main_grad.copy_(torch.randn_like(parameter))
    optimizer.step()
    one = optimizer.chained_optimizers[0] if hasattr(optimizer, "chained_optimizers") else optimizer
    [saved] = one.get_parameter_state_dp_zero(use_gloo_comm=False, return_on_all_ranks=True)[0].values()
    [buffer] = ddp.buffers
    return (
        len(buffer.buckets),
        [
            (
                saved[key][start:end].tolist(),
                one._get_main_param_and_optimizer_states(parameter)[key].tolist(),
            )
            for parameter, (start, end, _) in buffer.param_index_map.items()
            for key in ("param", "exp_avg", "exp_avg_sq")
        ],
    )
