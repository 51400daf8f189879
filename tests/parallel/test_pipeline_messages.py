"""Computed shapes give the bits of exchanged shapes and of a single process, without any exchange."""

import pytest
import torch

from tests.parallel.parallel_cases import PIPELINE_CASES, pipeline_inputs, pipeline_weights

BY_LAYOUT = [
    pytest.param(*case, id="{}-{}-{}".format("x".join(map(str, case[0])), len(case[1]), case[2]))
    for case in PIPELINE_CASES
]


@pytest.fixture(scope="module")
def reports(four_processes):
    return [report["pipelines"] for report in four_processes]


def on_one_process(layout, lengths, is_forward_only):
    """Return outputs of the last chunk and gradients of all chunks, computed one microbatch after another."""
    stages, virtual, context, tensor = layout
    weights = [weight.requires_grad_() for weight in pipeline_weights(stages * virtual)]
    outputs = []
    for hidden in pipeline_inputs(lengths, context * tensor):
        for weight in weights:
            hidden = torch.tanh(hidden @ weight)
        outputs.append(hidden.detach())
        if not is_forward_only:
            (hidden * hidden).sum().backward()
    return outputs, [weight.grad for weight in weights]


@pytest.mark.parametrize(("layout", "lengths", "is_forward_only"), BY_LAYOUT)
def test_results_have_the_bits_of_exchanged_shapes_and_of_one_process(
    layout, lengths, is_forward_only, reports
):
    outputs, gradients = on_one_process(layout, lengths, is_forward_only)
    computed, exchanged = zip(*(report[layout, lengths, is_forward_only] for report in reports), strict=True)
    for ranks in (computed, exchanged):
        last = [rank["outputs"] for rank in ranks if rank["outputs"]]
        assert len(last) == len(reports) // layout[0], "the last stage of each pipeline"
        assert all(len(of_rank) == len(lengths) for of_rank in last)
        for of_rank in last:
            assert all(map(torch.equal, of_rank, outputs))
        for rank in ranks:
            for place, gradient in rank["gradients"].items():
                if is_forward_only:
                    assert gradient is None
                else:
                    assert torch.equal(gradient, gradients[place]), place


@pytest.mark.parametrize(("layout", "lengths", "is_forward_only"), BY_LAYOUT)
def test_no_shape_is_exchanged_and_none_is_left(layout, lengths, is_forward_only, reports):
    for report in reports:
        computed, exchanged = report[layout, lengths, is_forward_only]
        assert computed["shapes"] == computed["waits"] == 0
        # Every message of this rank had a shape of its own, and a wait for the device after it.
        assert exchanged["shapes"] >= len(lengths) and exchanged["waits"] >= len(lengths)
        backward = ("_from_next", "_to_previous")
        for name, number in computed["unused"].items():
            assert number == 0 or (is_forward_only and name in backward), name
