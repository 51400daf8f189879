"""A pipeline of small chunks on Megatron's schedules, with computed shapes and with Megatron's exchange of them."""

from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_prime.parallel.pipeline_messages import PipelineMessages, connect_stages
from megatron_prime.parallel.topology import build_topology
from tests.parallel.parallel_cases import PIPELINE_CASES, PIPELINE_WIDTH, pipeline_inputs, pipeline_weights

QUEUES = ("_from_previous", "_to_previous", "_from_next", "_to_next")


class Chunk(torch.nn.Module):
    """One virtual stage: a product and a nonlinearity, on the previous chunk's output or on the data."""

    model_type = ModelType.encoder_or_decoder

    def __init__(self, config, weight, is_first):
        super().__init__()
        self.config, self.is_first = config, is_first
        self.weight = torch.nn.Parameter(weight.clone())
        self.received = None

    def set_input_tensor(self, received):
        self.received = received[0] if isinstance(received, list) else received

    def forward(self, inputs):
        return torch.tanh((inputs if self.is_first else self.received) @ self.weight)


@contextmanager
def counted_waits():
    """Count messages with shapes that this rank sends or receives, and its waits for the whole device."""
    # Where messages are not batched, as on CPUs, Megatron makes P2POps for shapes alone.
    counts = {"shapes": 0, "waits": 0}
    operation, synchronize = dist.P2POp, torch.cuda.synchronize

    class CountedOperation(operation):
        def __new__(cls, *arguments, **named):
            counts["shapes"] += 1
            return operation(*arguments, **named)

    def counted_synchronize(*arguments):
        counts["waits"] += 1
        return synchronize(*arguments)

    dist.P2POp, torch.cuda.synchronize = CountedOperation, counted_synchronize
    try:
        yield counts
    finally:
        dist.P2POp, torch.cuda.synchronize = operation, synchronize


def run_pipelines(platform):
    """Return the results of each case of PIPELINE_CASES, with computed and with exchanged shapes."""
    found, layout_now, topology = {}, None, None
    for layout, lengths, is_forward_only in PIPELINE_CASES:
        if layout != layout_now:
            stages, virtual, context, tensor = layout_now = layout
            topology = build_topology(
                platform,
                tensor,
                stages,
                sequence_parallel=tensor > 1,
                context=context,
                virtual_pipeline=virtual,
            )
            connect_stages(topology)  # It compares what arrives from each neighbour.
        found[layout, lengths, is_forward_only] = [
            _one_pass(topology, lengths, is_forward_only, kind)
            for kind in (PipelineMessages, P2PCommunicator)
        ]
    return found


def _one_pass(topology, lengths, is_forward_only, kind):
    stages, virtual = topology.pipeline_size, topology.virtual_size
    config = _config(topology)
    weights = pipeline_weights(stages * virtual)
    # Chunk c of stage s is virtual stage c * stages + s.
    places = [chunk * stages + topology.pipeline_rank for chunk in range(virtual)]
    chunks = [Chunk(config, weights[place], place == 0) for place in places]
    inputs = pipeline_inputs(lengths, topology.context_size * topology.tensor_size)
    iterators, outputs = [iter(inputs) for _ in chunks], []
    if kind is PipelineMessages:
        messages = PipelineMessages(topology, config, lengths)
    else:
        messages = P2PCommunicator(topology.pipeline_group, config)
    with counted_waits() as counts:
        get_forward_backward_func()(
            forward_step_func=lambda inputs, chunk: (chunk(next(inputs)), partial(_loss, outputs)),
            data_iterator=iterators if virtual > 1 else iterators[0],
            model=chunks,
            num_microbatches=len(lengths),
            seq_length=max(lengths),
            micro_batch_size=1,
            forward_only=is_forward_only,
            p2p_communicator=messages,
            pg_collection=topology.process_groups,
        )
    return counts | {
        "outputs": outputs,
        "gradients": {place: chunk.weight.grad for place, chunk in zip(places, chunks, strict=True)},
        "unused": {name: len(list(getattr(messages, name, ()))) for name in QUEUES},
    }


def _config(topology):
    stages, virtual = topology.pipeline_size, topology.virtual_size
    return TransformerConfig(
        num_layers=stages * virtual,
        hidden_size=PIPELINE_WIDTH,
        num_attention_heads=2,
        tensor_model_parallel_size=topology.tensor_size,
        sequence_parallel=topology.sequence_parallel,
        context_parallel_size=topology.context_size,
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        pipeline_dtype=torch.float32,
        calculate_per_token_loss=True,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        batch_p2p_comm=False,
        overlap_p2p_comm=virtual > 1,
        use_cpu_initialization=True,
    )


def _loss(outputs, output):
    outputs.append(output.detach().clone())
    return (output * output).sum(), torch.zeros((), dtype=torch.int), {}
