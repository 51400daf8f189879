"""The engine of a rehearsal, which samples nothing, and its weight sync, which plans and sends nothing."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from megatron_prime.models.builder import BuiltModel
from megatron_prime.planning.planned_run import PlannedRun
from megatron_prime.resharding.plan import plan_reshard
from megatron_prime.resharding.summary import summary
from megatron_prime.rollout.engine import NO_WEIGHTS, GroupStream
from megatron_prime.rollout.episode import Environments
from megatron_prime.types import Prompt, Rollout, SamplingParams


class RehearsedEngine:
    """Has weights and a version. Implements `rollout.engine.Engine`."""

    def __init__(self) -> None:
        self.policy_version = NO_WEIGHTS

    def stream(
        self,
        params: SamplingParams,
        group_size: int,
        stream_key: int,
        environments: Environments | None = None,
    ) -> AbstractContextManager[GroupStream]:
        """Refuse: a rehearsal has no sampler."""
        raise NotImplementedError

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        group_size: int,
        stream_key: int,
        environments: Environments | None = None,
    ) -> list[Rollout]:
        """Refuse: a rehearsal has no sampler."""
        raise NotImplementedError

    def while_training(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def release_memory(self) -> None:
        """Forget the weights, as servers on the same GPUs do."""
        self.policy_version = NO_WEIGHTS

    def close(self) -> None:
        """Do nothing."""


class RehearsedSync:
    """Plans the transfers to SGLang's servers, and checks that this rank holds what it would send.

    Args:
        engine: gets the version.
        run: layouts of training and servers.
        policy: its parameters on this rank.
        rank: of this process.
    """

    def __init__(self, engine: RehearsedEngine, run: PlannedRun, policy: BuiltModel, rank: int) -> None:
        self._engine, self._run, self._policy, self._rank = engine, run, policy, rank
        self.facts: dict[str, int] = {}
        """Numbers of the plan: slices and bytes that this rank sends, to other nodes too; empty without servers."""

    def push(self, policy_version: int) -> dict[str, float]:
        """Plan the sync once, set the engine's version, and return no metrics.

        Raises:
            ValueError: the plan names a slice that this rank does not hold.
        """
        if not self.facts and self._run.engines is not None:
            self.facts = self._plan()
        self._engine.policy_version = policy_version
        return {}

    def resync(self, server: int) -> None:
        """Do nothing: no server restarts."""

    def close(self) -> None:
        """Do nothing."""

    def _plan(self) -> dict[str, int]:
        run = self._run
        assert run.engines is not None
        plan = plan_reshard(
            run.shapes["policy"],
            run.layout,
            run.engines,
            bytes_per_element=run.dtype_bytes,
            ranks_per_node=run.gpu.gpus_per_node,
        )
        held = self._policy.named_parameters()
        sent = plan.sent_by(self._rank)
        for transfer in sent:
            parameter = held.get(transfer.source_param)
            if parameter is None or parameter.numel() * run.dtype_bytes < transfer.num_bytes:
                raise ValueError(
                    f"the weight sync takes {transfer.hf_name} from {transfer.source_param}, which this rank "
                    + ("does not hold" if parameter is None else "holds a smaller part of")
                )
        bytes_of = summary(plan)
        return {
            "slices": len(sent),
            "sent_bytes": bytes_of.sent_bytes_by_rank.get(self._rank, 0),
            "sent_to_other_nodes_bytes": bytes_of.nic_sent_bytes_by_rank.get(self._rank, 0),
            "all_ranks_bytes": bytes_of.network_bytes,
        }
