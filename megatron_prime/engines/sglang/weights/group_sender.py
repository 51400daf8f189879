"""Weights to servers with devices of their own: each training rank sends its slices through a process group.

The group (gloo on CPUs, NCCL on GPUs) joins all training ranks and the receivers; `loader.receiver` is its other end.
"""

from collections.abc import Mapping, Sequence

import torch

from megatron_prime.engines.sglang.loader.wire import (
    ProcessGroup,
    close_groups,
    exchange,
    group_messages,
    make_group,
)
from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan, Target
from megatron_prime.engines.sglang.weights.sender import (
    EncodedSlice,
    Rendezvous,
    SendReport,
    SliceKey,
    slice_key,
)
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.plan import Transfer


class GroupSender:
    """Sends a training rank's slices straight to the receivers that need them; see `Sender`.

    Args:
        plan: of a transfer to engine ranks outside of the training job.
        parameters: this rank's Megatron parameters by name.
        topology: the layout that the plan was made for.
        dtype: the type to send; slices are cast here.
    """

    def __init__(
        self,
        plan: BucketedPlan,
        parameters: Mapping[str, torch.Tensor],
        topology: Topology,
        dtype: torch.dtype,
    ) -> None:
        self._topology = topology
        self._plan = plan
        self._parameters = parameters
        self._dtype = dtype
        self._buckets = plan.outgoing(topology.rank)
        self._groups: dict[str, ProcessGroup] = {}

    @property
    def backend(self) -> str:
        """See `Sender.backend`."""
        # NCCL moves GPU memory directly and needs a GPU of its own per rank; gloo copies through host memory.
        return "nccl" if self._topology.platform.is_cuda else "gloo"

    @property
    def groups(self) -> list[str]:
        """See `Sender.groups`."""
        return list(self._groups)

    def drop_groups(self) -> None:
        """See `Sender.drop_groups`."""
        close_groups(self._groups, self.backend)

    @torch.no_grad()
    def send(self, rendezvous: Rendezvous) -> SendReport:
        """See `Sender.send`. Collective with the receivers too."""
        report = SendReport()
        ranks = dict(rendezvous.members)
        try:
            group = self._group(rendezvous)
            for bucket in self._buckets:
                targets = {target: transfers for target, transfers in bucket.items() if target in ranks}
                self._send_bucket(group, rendezvous, targets, report)
        except (RuntimeError, OSError) as error:
            # The group as a whole has failed, and no engine can be reached through it any more.
            report.faults |= {engine: f"rank {self._topology.rank}: {error}" for (engine, _) in ranks}
        if report.faults:
            self.drop_groups()
        return report

    def _group(self, rendezvous: Rendezvous) -> ProcessGroup:
        if rendezvous.group not in self._groups:
            self.drop_groups()
            self._groups[rendezvous.group] = make_group(
                self.backend,
                rendezvous.connect(),
                rendezvous.group,
                self._topology.rank,
                rendezvous.size,
                rendezvous.timeout_s,
            )
        return self._groups[rendezvous.group]

    def _send_bucket(
        self,
        group: ProcessGroup,
        rendezvous: Rendezvous,
        bucket: Mapping[Target, Sequence[Transfer]],
        report: SendReport,
    ) -> None:
        ranks = dict(rendezvous.members)
        # Several targets may get the same slice, such as the servers of a fleet: it is encoded once.
        encoded: dict[SliceKey, EncodedSlice] = {}
        outgoing: list[tuple[int, torch.Tensor]] = []
        for target, transfers in bucket.items():
            if target[0] in report.faults:
                continue
            for transfer in transfers:
                if slice_key(transfer) not in encoded:
                    encoded[slice_key(transfer)] = EncodedSlice.encode(
                        transfer, self._slice(transfer), self._plan
                    )
            slices = [(t.dim, tensor) for t in transfers for tensor in encoded[slice_key(t)].tensors]
            checksums = torch.stack([c for t in transfers for c in encoded[slice_key(t)].checksums])
            outgoing += [(ranks[target], message) for message in self.messages(slices, checksums)]
            report.num_bytes += sum(tensor.nbytes for _, tensor in slices)
            report.add(target, checksums.sum(0).tolist())
        errors = exchange(group, outgoing, [], self.backend, rendezvous.timeout_s)
        engines = {rank: target[0] for target, rank in rendezvous.members}
        report.faults |= {
            engines[rank]: f"rank {self._topology.rank}: {error}" for rank, error in errors.items()
        }

    def messages(
        self, slices: Sequence[tuple[int, torch.Tensor]], checksums: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the messages to one receiver for one bucket, in order; large slices are views, not copies."""
        direct, packed = group_messages(slices)
        joined = [torch.cat([tensor.reshape(-1) for tensor in part]) for part in packed]
        return [*(tensor.reshape(-1) for tensor in direct), *joined, checksums]

    def _slice(self, transfer: Transfer) -> torch.Tensor:
        parameter = self._parameters[transfer.source_param].detach()
        return parameter.narrow(transfer.dim, transfer.source_local_start, transfer.length).to(self._dtype)
