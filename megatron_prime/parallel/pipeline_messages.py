"""Messages between pipeline stages, whose shapes follow from the packing instead of being exchanged.

Microbatches differ in length. For such messages Megatron's own communicator first sends the shape, waits for it on the
host, and then waits for everything else that the device does. But all stages of a pipeline know the packing. The
messages over one link arrive in the order in which they were sent, so it suffices to know the order of the microbatches
in it (docs/adr/0037).
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.p2p_communication import (
    P2PCommunicator,
    _batched_p2p_ops,
    _p2p_ops,
)
from megatron.core.pipeline_parallel.schedules import get_schedule_table
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_prime.parallel.topology import Topology


def connect_stages(topology: Topology) -> None:
    """Exchange ranks with the neighbouring stages, in both directions, as the schedules exchange tensors.

    NCCL connects two ranks at their first message, for which both wait. In a schedule that could be a stage that waits
    for a third one first. Collective over all ranks; do nothing without a pipeline.

    Raises:
        RuntimeError: a message of another rank arrived.
    """
    group = topology.pipeline_group
    if group.size() == 1:
        return
    ranks = dist.get_process_group_ranks(group)
    neighbours = {"prev": ranks[group.rank() - 1], "next": ranks[(group.rank() + 1) % group.size()]}
    # Megatron batches messages on GPUs unless there are virtual stages; the two ways have connections of their own.
    exchange = _batched_p2p_ops if topology.platform.is_cuda and topology.virtual_size == 1 else _p2p_ops
    for to, source in (("next", "prev"), ("prev", "next")):
        sent = torch.tensor([topology.rank], device=topology.platform.device)
        tensors = dict.fromkeys([f"tensor_{verb}_{side}" for verb in ("send", "recv") for side in neighbours])
        received = torch.empty_like(sent)
        requests = exchange(
            **tensors | {f"tensor_send_{to}": sent, f"tensor_recv_{source}": received},
            group=group,
            prev_pipeline_rank=neighbours["prev"],
            next_pipeline_rank=neighbours["next"],
        )
        for request in requests.values() if isinstance(requests, dict) else requests:
            request.wait()
        if received.item() != neighbours[source]:
            raise RuntimeError(
                f"rank {topology.rank}: {received.item()} arrived from rank {neighbours[source]}"
            )


class PipelineMessages(P2PCommunicator):
    """The communicator of one pass, for one pipeline stage.

    Args:
        topology: the layout; its pipeline has several stages.
        config: of the model.
        lengths: tokens of each microbatch, in the order of the data, with padding and of all context ranks together.
    """

    def __init__(self, topology: Topology, config: TransformerConfig, lengths: Sequence[int]) -> None:
        super().__init__(topology.pipeline_group, config)
        num_chunks = config.virtual_pipeline_model_parallel_size or 1
        order = get_schedule_table(len(lengths), num_chunks, config.microbatch_group_size_per_vp_stage)
        shares = topology.context_size * (topology.tensor_size if topology.sequence_parallel else 1)

        def shapes(crosses_ends: bool) -> Iterator[list[int]]:
            """Return the shapes of the messages over a link in one direction, which both of its stages calculate.

            Every stage computes its (microbatch, chunk) pairs in the same order, forward and, with the chunks
            reversed, backward, and sends each result on, except for the last chunk of the last stage and the
            gradients of the first chunk of the first stage. Those would cross from one end to the other.
            """
            return iter(
                [
                    [lengths[microbatch] // shares, 1, config.hidden_size]
                    for microbatch, chunk in order
                    if not (crosses_ends and chunk == num_chunks - 1)
                ]
            )

        # The link before the first stage is the one behind the last: a circle, which virtual stages pass several times.
        self._from_previous, self._to_previous = (shapes(topology.is_first_stage) for _ in range(2))
        self._from_next, self._to_next = (shapes(topology.is_last_stage) for _ in range(2))

    def _communicate_shapes(
        self,
        tensor_send_next: torch.Tensor | None,
        tensor_send_prev: torch.Tensor | None,
        recv_prev: bool,
        recv_next: bool,
    ) -> tuple[list[int], list[int]]:
        """Return the shapes to receive from the previous and the next stage, without communication."""
        for tensor, shapes in ((tensor_send_next, self._to_next), (tensor_send_prev, self._to_previous)):
            # With equal sequences of shapes at both ends of a link, nothing is received into memory of another size.
            if tensor is not None:
                expected = next(shapes)
                assert list(tensor.size()) == expected, f"sending {list(tensor.size())} instead of {expected}"
        return (
            next(self._from_previous) if recv_prev else [],
            next(self._from_next) if recv_next else [],
        )
