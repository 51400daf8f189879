"""A model in one of its roles: the frozen reference scores; policy and PRM score and learn.

Policy and PRM are one class with two losses.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
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

from megatron_prime.config.acceleration import AccelerationConfig
from megatron_prime.config.optimizer import OptimizerConfig
from megatron_prime.config.tables.memory import MemoryConfig
from megatron_prime.models.builder import BuiltModel, build_model
from megatron_prime.models.costs import row_costs
from megatron_prime.models.forward import PackedPass, Routing, RowLoss, Scores, ScoringSettings, Sequences
from megatron_prime.models.passthrough import with_passthrough
from megatron_prime.models.te_layers import quantized_parts
from megatron_prime.parallel.collectives import any_rank
from megatron_prime.parallel.topology import Topology
from megatron_prime.training.health.not_finite import SkippedUpdate, WatchedLoss, describe_skipped
from megatron_prime.training.residency import Part, PartName, Residency


class Scorer:
    """A model that scores responses.

    Args:
        role: policy, prm or reference; names it in errors.
        hf_path: HF checkpoint to start from.
        topology: the layout.
        settings: packing, chunking and temperature.
        load_weights: False when a checkpoint is loaded right after.
        memory: what of the role leaves for host memory between its uses, and what is recomputed.
        load_balance_coef: of a role that learns; see PackedPass.
        acceleration: FP8 of the role's layers, and what overlaps.
    """

    def __init__(
        self,
        role: str,
        hf_path: Path,
        topology: Topology,
        settings: ScoringSettings,
        load_weights: bool = True,
        memory: MemoryConfig | None = None,
        load_balance_coef: float = 0.0,
        acceleration: AccelerationConfig | None = None,
    ) -> None:
        memory = memory or MemoryConfig()
        self.role = role
        self.topology = topology
        self.acceleration = acceleration or AccelerationConfig()
        self.built: BuiltModel = build_model(
            hf_path, topology, load_weights, memory.recompute, role, self.acceleration
        )
        # The reference's weights ask for gradients too, though it never gets any: torch and Megatron multiply by frozen
        # weights with other kernels, and PRM and reference must agree to the last bit before the first update.
        self.built.module.requires_grad_(True)
        costs = row_costs(self.built.shape)
        self._pass = PackedPass(self._wrap(), topology, settings, costs, load_balance_coef)
        parts = self._parts()
        self.residency = Residency(topology.platform, parts, memory.offloaded_parts(role) & set(parts))

    def score(self, sequences: Sequences, routing: Routing | None = None) -> Scores:
        """Log-probs and entropies of all rows, equal on every rank; see PackedPass. Collective over all ranks."""
        with self.residency.hold("weights"):
            return self._pass.score(sequences, routing=routing)

    def resident(self) -> AbstractContextManager[None]:
        """Everything of the role on the device for the block: for phases that use it several times."""
        return self.residency.hold()

    def _wrap(self) -> Sequence[torch.nn.Module]:
        for parameter in self.built.module.parameters():
            if hasattr(
                parameter, "clear_high_precision_init_val"
            ):  # of FP8 weights, for an optimizer's masters
                parameter.clear_high_precision_init_val()  # type: ignore[operator]
        return self.built.chunks

    def _parts(self) -> dict[PartName, Part]:
        return {"weights": Part(self._weights, content="constant")}

    def _weights(self) -> Iterator[torch.Tensor]:
        for parameter in self.built.module.parameters():
            yield from quantized_parts(parameter)


class UpdateWatch(Protocol):
    """Is told of every update, on every rank alike."""

    def stepped(self, role: str) -> None:
        """It was applied."""
        ...

    def skipped(self, update: SkippedUpdate) -> None:
        """It was not finite and left no trace; what this raises ends the update."""
        ...


class StopAtFirst:
    """The watch of a model that has no other: the first update that is not finite is an error."""

    def stepped(self, role: str) -> None:
        """See UpdateWatch."""

    def skipped(self, update: SkippedUpdate) -> None:
        """Raises FloatingPointError."""
        raise FloatingPointError(
            f"the {update.role}'s update is not finite (gradient norm {update.grad_norm}): {update.summary()}. Lower "
            f"{update.role}.lr, or look at the last metrics for a loss that ran away. No weight was changed"
        )


class Trainable(Scorer):
    """A model with gradients, the distributed optimizer and a learning-rate schedule.

    Args:
        role: as in Scorer.
        hf_path: as in Scorer.
        topology: as in Scorer.
        settings: as in Scorer.
        optimizer_config: learning rate, schedule, AdamW, clipping.
        num_steps: trainer steps of the whole run: the length of a decaying schedule.
        load_weights: as in Scorer.
        memory: as in Scorer.
        acceleration: as in Scorer.
    """

    def __init__(
        self,
        role: str,
        hf_path: Path,
        topology: Topology,
        settings: ScoringSettings,
        optimizer_config: OptimizerConfig,
        num_steps: int,
        load_weights: bool = True,
        memory: MemoryConfig | None = None,
        acceleration: AccelerationConfig | None = None,
    ) -> None:
        super().__init__(
            role,
            hf_path,
            topology,
            settings,
            load_weights,
            memory,
            optimizer_config.load_balance_coef,
            acceleration,
        )
        self.watch: UpdateWatch = StopAtFirst()
        self._has_gather_left = False
        self.optimizer = get_megatron_optimizer(
            _megatron_optimizer_config(optimizer_config, topology, self.acceleration, role),
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
        """Learning rate of the next update."""
        return self.optimizer.param_groups[0]["lr"]

    def score(self, sequences: Sequences, routing: Routing | None = None) -> Scores:
        """See Scorer."""
        self.gather_weights()
        return super().score(sequences, routing)

    def update(
        self, sequences: Sequences, rows: Sequence[int], loss: RowLoss, routing: Routing | None = None
    ) -> tuple[Scores, dict[str, float]]:
        """One optimizer step on some rows (a minibatch).

        Returns the scores of the weights before the step, and the loss's metric sums with `grad_norm` (before
        clipping), equal on every rank. Collective over all ranks. A step whose loss or gradient is not finite on any
        rank is skipped on all: weights, moments and step count stay, and `watch` decides whether that is an error.
        """
        with self.residency.hold():
            return self._update(sequences, rows, loss, routing)

    def _update(
        self, sequences: Sequences, rows: Sequence[int], loss: RowLoss, routing: Routing | None
    ) -> tuple[Scores, dict[str, float]]:
        for chunk in self._ddp:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        watched = WatchedLoss(loss)
        scores, metrics = self._pass.backward(sequences, rows, watched, routing)
        found_inf = self.optimizer.prepare_grads()
        metrics["grad_norm"] = grad_norm = float(self.optimizer.get_grad_norm())
        is_broken = found_inf or not math.isfinite(grad_norm) or not watched.is_finite
        # Ranks must not differ: one that steps alone would part from the others for good.
        if any_rank(is_broken, self.topology):
            self.watch.skipped(
                describe_skipped(self.role, self.built.module, watched, grad_norm, self.topology)
            )
        else:
            self.optimizer.step()
            self._has_gather_left = self.acceleration.overlap.param_gather
            self.watch.stepped(self.role)
        return scores, metrics

    def gather_weights(self) -> None:
        """Gather now what overlap.param_gather leaves for the next update's forward pass. Collective over all ranks.

        Until then a rank's weights are its own shard's new ones and the others' old ones.
        """
        if self._has_gather_left:
            for chunk in self._ddp:
                chunk.start_param_sync(force_sync=True)
            self._has_gather_left = False

    def advance_schedule(self) -> None:
        """Move the learning rate on by one trainer step; behind the step's last update, weights are whole again."""
        self.gather_weights()
        self.schedule.step(increment=1)

    def _wrap(self) -> Sequence[torch.nn.Module]:
        config, overlap = self.built.chunks[0].config, self.acceleration.overlap
        settings = with_passthrough(
            DistributedDataParallelConfig,
            self.topology.megatron,
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=overlap.grad_reduce,
            overlap_param_gather=overlap.param_gather,
            fp8_param_gather=self.acceleration.fp8.has_primary_weights(self.role),
            use_distributed_optimizer=True,
        )
        self._ddp = [DistributedDataParallel(config, settings, chunk) for chunk in self.built.chunks]
        config.finalize_model_grads_func = finalize_model_grads
        if overlap.grad_reduce:
            # Gradients add up over microbatches before they are reduced once.
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
            ddp: Any = chunk  # its `buffers` hides torch's method of that name
            for buffer in [*ddp.buffers, *ddp.expert_parallel_buffers]:
                yield buffer.grad_data

    def _optimizer_tensors(self) -> Iterator[torch.Tensor]:
        """Moments, and fp32 masters where they are not the weights themselves."""
        others = [*self._weights(), *self._gradients()]
        shared = {tensor.untyped_storage()._cdata for tensor in others}
        for megatron_optimizer in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            inner = megatron_optimizer.optimizer
            if inner is None:  # a rank without parameters of this kind
                continue
            masters = (parameter for group in inner.param_groups for parameter in group["params"])
            moments = (value for state in inner.state.values() for value in state.values())
            for tensor in [*masters, *moments]:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in shared:
                    yield tensor


def keep_padding_between_buckets(ddp: DistributedDataParallel) -> None:
    """Make a checkpoint of the distributed optimizer right where a buffer has several buckets.

    A shared embedding of a pipeline has a bucket of its own, and every bucket is padded at its end. When megatron-core
    0.16.1 saves, it joins the buckets without that padding, but looks parameters up by places that count it: moments
    would be saved shifted. Counting the padding between buckets as content makes both the same.
    """
    buffers: Any = [*ddp.buffers, *ddp.expert_parallel_buffers]  # type: ignore[misc]
    for buffer in buffers:
        for bucket in buffer.buckets[:-1]:
            bucket.numel_unpadded = bucket.grad_data.numel()
        buffer.numel_unpadded = sum(bucket.numel_unpadded for bucket in buffer.buckets)


def _megatron_optimizer_config(
    config: OptimizerConfig, topology: Topology, acceleration: AccelerationConfig, role: str
) -> MegatronOptimizerConfig:
    dtype, recipe = topology.platform.dtype, acceleration.fp8.recipe_of(role)
    return with_passthrough(
        MegatronOptimizerConfig,
        topology.megatron,
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
        overlap_param_gather=acceleration.overlap.param_gather,
        fp8_recipe=None if recipe == "none" else recipe,
    )
