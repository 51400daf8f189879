"""Training runs on a pretended GPU have no fault that a CPU hides, and wait for the device as rarely as listed."""

import itertools
from collections import Counter

import pytest

from tests.gpu import pretend_faults, pretend_runs
from tests.gpu.pretend_faults import FAULTS, PHASE, SOUND
from tests.gpu.pretend_runs import RUNS
from tests.support.distributed_runner import run_distributed
from tests.support.pretend_gpu.findings import COSTS, Finding, Kind

PLAIN_LAYERS = ("parallel/context.py",)
"""Code of layers in plain torch, which moves the order of tokens to the device in every layer; Transformer Engine's
does not."""
TENSOR, PIPELINE, CONTEXT, EXPERTS = RUNS
BOUNDS: dict[str, dict[str, tuple[int, ...]]] = {
    # Reading and checking the weights of three models.
    "start": {TENSOR: (48, 8, 117), PIPELINE: (50, 8, 137), CONTEXT: (50, 8, 135), EXPERTS: (48, 8, 167)},
    # Moving the batch to the device, when nothing is queued there.
    "step": {TENSOR: (0, 0, 8), PIPELINE: (0, 0, 8), CONTEXT: (0, 0, 12), EXPERTS: (0, 0, 8)},
    # The embedded engine needs each token on the host. SGLang's servers are other processes.
    "rollout": {TENSOR: (16, 0, 11), PIPELINE: (16, 0, 11), CONTEXT: (16, 0, 11), EXPERTS: (16, 0, 11)},
    # A layer of experts fetches the sizes of their shares, and without Transformer Engine the tokens of each.
    "logprobs": {EXPERTS: (24, 0, 0)},
    # Two updates: loss, gradient norm and metrics. The rest are checks and metrics of a batch.
    "prm": {TENSOR: (42, 0, 4), PIPELINE: (44, 0, 4), CONTEXT: (48, 0, 4), EXPERTS: (88, 0, 4)},
    # Checks and the spread of the groups, once a batch.
    "advantage": {TENSOR: (32, 0, 0), PIPELINE: (32, 0, 0), CONTEXT: (32, 0, 0), EXPERTS: (32, 0, 0)},
    # Four updates: weights of the minibatch, loss, gradient norm (Megatron computes it twice) and metrics.
    "policy": {TENSOR: (24, 0, 16), PIPELINE: (28, 0, 16), CONTEXT: (24, 0, 16), EXPERTS: (48, 0, 16)},
    # One save (two with async_save). Megatron copies optimizer states parameter by parameter, and torch and Megatron
    # gather their plans through the device.
    "checkpoint": {
        TENSOR: (56, 252, 36),
        PIPELINE: (28, 114, 18),
        CONTEXT: (28, 72, 18),
        EXPERTS: (28, 114, 18),
    },
}
"""Phase -> run -> findings of the kinds in COSTS on the rank with most of them, in two steps; none if left out.

The numbers may only fall. A change that needs more of them makes the GPU wait for the host in every step.
"""


@pytest.fixture(scope="module")
def planted():
    (found,) = run_distributed(pretend_faults.plant, 1)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the findings of each run by rank."""
    folder = tmp_path_factory.mktemp("pretend")
    run_distributed(pretend_runs.prepare, 1, str(folder))
    return run_distributed(pretend_runs.run_all, 2, str(folder))


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_by_name_phase_and_place(planted, name):
    ((phase, kind, place, count),) = planted[name]
    assert (phase, kind, count) == (PHASE, FAULTS[name].value, 1)
    assert place in (name, "<genexpr>")


@pytest.mark.parametrize("name", SOUND)
def test_sound_code_has_no_finding(planted, name):
    assert planted[name] == []


def costs(found: Counter[Finding], phase: str, kind: Kind) -> Counter[str]:
    """Return the places of a cost, without those in layers in plain torch."""
    places: Counter[str] = Counter()
    for finding, count in found.items():
        is_plain = any(part in finding.place for part in PLAIN_LAYERS)
        if (finding.phase, finding.kind) == (phase, kind) and not is_plain:
            places[f"{finding.operation} at {finding.place}"] += count
    return places


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_no_fault(runs, name):
    faults = sorted({finding for found in runs for finding in found[name] if finding.kind not in COSTS})
    assert faults == []


@pytest.mark.parametrize("name", RUNS)
def test_a_run_waits_for_the_device_as_rarely_as_listed(runs, name):
    phases = {*BOUNDS, *(finding.phase for found in runs for finding in found[name])}
    advice = []
    for phase, (number, kind) in itertools.product(sorted(phases), enumerate(COSTS)):
        bound = (*BOUNDS.get(phase, {}).get(name, ()), 0, 0, 0, 0)[number]
        most = max((costs(found[name], phase, kind) for found in runs), key=Counter.total)
        if most.total() > bound:
            lines = "".join(f"\n  {count:4} x {place}" for place, count in most.most_common())
            advice.append(f"{phase}: {kind.value}: {most.total()} times, at most {bound} are allowed:{lines}")
        elif most.total() < bound:
            advice.append(f"{phase}: {kind.value}: lower the bound from {bound} to {most.total()}")
    assert not advice, "\n".join(advice)


@pytest.mark.parametrize("part", PLAIN_LAYERS)
def test_code_that_is_left_out_is_still_there(runs, part):
    assert any(part in finding.place for found in runs for name in RUNS for finding in found[name])
