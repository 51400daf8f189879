"""A model in one of its roles: `Scorer` for the frozen reference, `Trainable` for policy and PRM.

Policy and PRM are one class; their losses are arguments of `Trainable.update`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_prime.config.model_options import ModelOptions
from megatron_prime.config.optimizer import OptimizerConfig
from megatron_prime.config.tables.performance.memory import MemoryConfig
from megatron_prime.models.builder import BuiltModel, build_model
from megatron_prime.models.costs import row_costs
from megatron_prime.models.forward import PackedPass, Routing, RowLoss, Scores, ScoringSettings, Sequences
from megatron_prime.models.passthrough import with_passthrough
from megatron_prime.models.te_layers import quantized_parts
from megatron_prime.parallel.collectives import any_rank
from megatron_prime.parallel.topology import Topology
from megatron_prime.training.health.not_finite import SkippedUpdate, WatchedLoss, describe_skipped
from megatron_prime.training.residency import Part, PartName, Residency


@dataclass(frozen=True)
class RoleSpec:
    """A model's role in the run: where its weights come from, and how it computes."""

    name: str
    """policy, prm or reference; it selects FP8 recipe and offloading, and stands in error messages."""
    hf_path: Path
    """HF checkpoint to start from."""
    scoring: ScoringSettings
    """Packing, chunking and temperature."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Offloading to host memory between uses, and activation recomputation."""
    options: ModelOptions = field(default_factory=ModelOptions)
    """FP8, communication that overlaps with computation, and fields passed to megatron-core."""


class Scorer:
    """A model that scores responses.

    Args:
        spec: the role.
        topology: the layout.
        load_weights: False when a checkpoint is loaded right after.
        load_balance_coef: weight of the load-balancing loss of a role that trains; see PackedPass.
    """

    def __init__(
        self, spec: RoleSpec, topology: Topology, load_weights: bool = True, load_balance_coef: float = 0.0
    ) -> None:
        self.role = spec.name
        self.topology = topology
        self.options = spec.options
        self.built: BuiltModel = build_model(
            spec.hf_path, topology, load_weights, spec.memory.recompute, spec.name, spec.options
        )
        # The reference's weights require gradients too, though it never gets any: torch and Megatron use other kernels
        # for frozen weights, and PRM and reference must agree to the last bit before the first update.
        self.built.module.requires_grad_(True)
        # Walking through the modules for each measurement of memory would take longer than a small model's layers.
        self._parameters = tuple(self.built.module.parameters())
        costs = row_costs(self.built.shape)
        self._pass = PackedPass(self._wrap(), topology, spec.scoring, costs, load_balance_coef)
        parts = self._parts()
        offloaded = spec.memory.offloaded_parts(spec.name) & set(parts)
        self.residency = Residency(topology.platform, parts, offloaded)

    def score(self, sequences: Sequences, routing: Routing | None = None) -> Scores:
        """Return log-probs and entropies of all rows, equal on every rank. Collective; see PackedPass."""
        with self.residency.hold("weights"):
            return self._pass.score(sequences, routing=routing)

    def resident(self) -> AbstractContextManager[None]:
        """Keep everything of the role on the device for the block, for a phase that uses it several times."""
        return self.residency.hold()

    def _wrap(self) -> Sequence[torch.nn.Module]:
        for parameter in self.built.module.parameters():
            # FP8 weights keep their initial values in high precision for an optimizer; a frozen model needs none.
            if hasattr(parameter, "clear_high_precision_init_val"):
                parameter.clear_high_precision_init_val()  # type: ignore[operator]
        return self.built.chunks

    def _parts(self) -> dict[PartName, Part]:
        return {"weights": Part(self._weights, content="constant")}

    def _weights(self) -> Iterator[torch.Tensor]:
        for parameter in self._parameters:
            yield from quantized_parts(parameter)


class UpdateWatch(Protocol):
    """Receives the outcome of every update, the same on every rank."""

    def stepped(self, role: str) -> None:
        """Handle an update that was applied."""
        ...

    def skipped(self, update: SkippedUpdate) -> None:
        """Handle an update that was not finite and changed nothing; an exception raised here ends the update."""
        ...


class StopAtFirst:
    """The default watch, for which the first update that is not finite is an error."""

    def stepped(self, role: str) -> None:
        """Do nothing."""

    def skipped(self, update: SkippedUpdate) -> None:
        """Raise FloatingPointError."""
        raise FloatingPointError(
            f"the {update.role}'s update is not finite (gradient norm {update.grad_norm}): {update.summary()}. Lower "
            f"{update.role}.lr, or look at the last metrics for a loss that ran away. No weight was changed"
        )


class Trainable(Scorer):
    """A model with gradients, the distributed optimizer and a learning-rate schedule.

    Args:
        spec: the role.
        topology: the layout.
        optimizer_config: learning rate, schedule, AdamW, clipping.
        num_steps: trainer steps of the whole run: the length of a decaying schedule.
        load_weights: False when a checkpoint is loaded right after.
    """

    def __init__(
        self,
        spec: RoleSpec,
        topology: Topology,
        optimizer_config: OptimizerConfig,
        num_steps: int,
        load_weights: bool = True,
    ) -> None:
        super().__init__(spec, topology, load_weights, optimizer_config.load_balance_coef)
        self.watch: UpdateWatch = StopAtFirst()
        self._has_gather_left = False
        self.optimizer = get_megatron_optimizer(
            _megatron_optimizer_config(optimizer_config, topology, self.options, self.role),
            [*self._ddp],
        )
        self.schedule = OptimizerParamScheduler(
            self.optimizer,
            init_lr=0.0,
            max_lr=optimizer_config.lr,
            min_lr=optimizer_config.min_lr,
            lr_warmup_steps=optimizer_config.lr_warmup_steps,
            lr_decay_steps=num_steps,
            lr_decay_style=optimizer_config.lr_decay,
            start_wd=optimizer_config.weight_decay,
            end_wd=optimizer_config.weight_decay,
            wd_incr_steps=num_steps,
            wd_incr_style="constant",
            use_checkpoint_opt_param_scheduler=False,
            override_opt_param_scheduler=True,
        )

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self.optimizer.param_groups[0]["lr"]

    def score(self, sequences: Sequences, routing: Routing | None = None) -> Scores:
        """Return scores like Scorer, after gathering weights that an update has left to gather."""
        self.gather_weights()
        return super().score(sequences, routing)

    def update(
        self,
        sequences: Sequences,
        rows: Sequence[int],
        loss: RowLoss,
        routing: Routing | None = None,
        *,
        keeps_scores: bool = True,
    ) -> tuple[Scores | None, dict[str, float]]:
        """Take one optimizer step on some rows (a minibatch). Collective over all ranks.

        A step whose loss or gradient is not finite on any rank is skipped on all of them: weights, moments and step
        count stay, and `watch` decides whether that is an error.

        Returns:
            The scores of the weights before the step (None without `keeps_scores`), and the loss's metric sums with
            `grad_norm` (before clipping), both equal on every rank.
        """
        with self.residency.hold():
            return self._update(sequences, rows, loss, routing, keeps_scores)

    def _update(
        self,
        sequences: Sequences,
        rows: Sequence[int],
        loss: RowLoss,
        routing: Routing | None,
        keeps_scores: bool,
    ) -> tuple[Scores | None, dict[str, float]]:
        for chunk in self._ddp:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        watched = WatchedLoss(loss)
        scores, metrics = self._pass.backward(sequences, rows, watched, routing, keeps_scores=keeps_scores)
        found_inf = self.optimizer.prepare_grads()
        metrics["grad_norm"] = grad_norm = float(self.optimizer.get_grad_norm())
        is_broken = found_inf or not math.isfinite(grad_norm) or not watched.is_finite
        # All ranks must decide alike: one that stepped alone would hold other weights from here on.
        if any_rank(is_broken, self.topology):
            self.watch.skipped(
                describe_skipped(self.role, self.built.module, watched, grad_norm, self.topology)
            )
        else:
            self.optimizer.step()
            self._has_gather_left = self.options.overlap.param_gather
            self.watch.stepped(self.role)
        return scores, metrics

    def fill_moments(self) -> None:
        """Give the optimizer the zero moments that its first step would give it, so that they can be saved before."""
        for megatron_optimizer in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            inner = megatron_optimizer.optimizer
            if inner is None:  # This rank holds no parameters of this kind.
                continue
            megatron_optimizer.init_state_fn(inner, megatron_optimizer.config)
            if isinstance(inner, torch.optim.Adam | torch.optim.AdamW):
                for state in inner.state.values():
                    state.setdefault("step", torch.tensor(0.0))

    def gather_weights(self) -> None:
        """Gather the weights that overlap.param_gather leaves to the next forward pass. Collective over all ranks.

        Until then a rank holds the new weights of its own shard and the old ones of all others.
        """
        if self._has_gather_left:
            for chunk in self._ddp:
                chunk.start_param_sync(force_sync=True)
            self._has_gather_left = False

    def advance_schedule(self) -> None:
        """Advance the learning rate by one trainer step, and gather weights after the step's last update."""
        self.gather_weights()
        self.schedule.step(increment=1)

    def _wrap(self) -> Sequence[torch.nn.Module]:
        config, overlap = self.built.chunks[0].config, self.options.overlap
        settings = with_passthrough(
            DistributedDataParallelConfig,
            self.options.megatron,
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=overlap.grad_reduce,
            overlap_param_gather=overlap.param_gather,
            fp8_param_gather=self.options.fp8.has_primary_weights(self.role),
            use_distributed_optimizer=True,
        )
        self._ddp = [DistributedDataParallel(config, settings, chunk) for chunk in self.built.chunks]
        config.finalize_model_grads_func = finalize_model_grads
        if overlap.grad_reduce:
            # Without no_sync, Megatron would reduce the gradients of every microbatch instead of their sum once.
            no_sync: Any = [chunk.no_sync for chunk in self._ddp]
            config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        for chunk in self._ddp:
            keep_padding_between_buckets(chunk)
        return self._ddp

    def _parts(self) -> dict[PartName, Part]:
        return {
            "weights": Part(self._weights),
            "gradients": Part(self._gradients, content="dropped"),
            "optimizer": Part(self._optimizer_tensors),
        }

    def _gradients(self) -> Iterator[torch.Tensor]:
        for chunk in self._ddp:
            ddp: Any = chunk  # Megatron's attribute `buffers` hides torch's method of that name.
            for buffer in [*ddp.buffers, *ddp.expert_parallel_buffers]:
                yield buffer.grad_data

    def _optimizer_tensors(self) -> Iterator[torch.Tensor]:
        """Yield moments, and fp32 master weights where they are not the weights themselves."""
        others = [*self._weights(), *self._gradients()]
        shared = {tensor.untyped_storage()._cdata for tensor in others}
        for megatron_optimizer in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            inner = megatron_optimizer.optimizer
            if inner is None:  # This rank holds no parameters of this kind, for instance no experts.
                continue
            masters = (parameter for group in inner.param_groups for parameter in group["params"])
            moments = (value for state in inner.state.values() for value in state.values())
            for tensor in [*masters, *moments]:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in shared:
                    yield tensor


def keep_padding_between_buckets(ddp: DistributedDataParallel) -> None:
    """Make checkpoints of the distributed optimizer correct where a buffer has several buckets.

    A shared embedding of a pipeline has a bucket of its own, and every bucket is padded at its end. When megatron-core
    0.16.1 saves, it joins the buckets without that padding, but looks parameters up at offsets that count it: moments
    would be saved shifted. Counting the padding between buckets as content makes the two agree.
    """
    buffers: Any = [*ddp.buffers, *ddp.expert_parallel_buffers]  # type: ignore[misc]
    for buffer in buffers:
        for bucket in buffer.buckets[:-1]:
            bucket.numel_unpadded = bucket.grad_data.numel()
        buffer.numel_unpadded = sum(bucket.numel_unpadded for bucket in buffer.buckets)


def _megatron_optimizer_config(
    config: OptimizerConfig, topology: Topology, options: ModelOptions, role: str
) -> MegatronOptimizerConfig:
    dtype, recipe = topology.platform.dtype, options.fp8.recipe_of(role)
    return with_passthrough(
        MegatronOptimizerConfig,
        options.megatron,
        optimizer="adam",
        lr=config.lr,
        min_lr=config.min_lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_eps=config.adam_eps,
        clip_grad=config.grad_clip,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=True,
        overlap_param_gather=options.overlap.param_gather,
        fp8_recipe=None if recipe == "none" else recipe,
    )
