"""Phases are timed, and the peak memory of each role within the phase is reported."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from megatron_prime.observability.metrics import Metrics
from megatron_prime.parallel.platform import Platform
from megatron_prime.rollout.verification import VerifierAwayError
from megatron_prime.training.phase_memory import PhaseMemory, free_memory_for_servers, release_after
from megatron_prime.training.residency import Part, Residency
from tests.support.metric_names import undocumented

PLATFORM = Platform(torch.device("cpu"), "gloo", torch.float32, None)


def test_each_phase_reports_its_own_peak():
    tensors = [torch.ones(1 << 10)]
    role = Residency(PLATFORM, {"weights": Part(lambda: tensors)}, ("weights",))
    role.park()
    memory, metrics = PhaseMemory({"prm": role}, PLATFORM), Metrics()
    with memory.phase(metrics, "prm"), role.hold():
        tensors.append(torch.ones(1 << 10))
    with memory.phase(metrics, "policy"):
        pass
    metrics.update(memory.host_copies())
    assert metrics["memory/prm/prm_gib"] == 2 * 4 / 2**20
    assert metrics["memory/policy/prm_gib"] == 0.0
    assert metrics["memory/host_copies_gib"] == 2 * 4 / 2**20
    assert {"time/prm_s", "time/policy_s"} < set(metrics)
    assert undocumented(metrics) == []


def test_every_rank_frees_its_cached_memory_for_servers():
    calls = []
    platform = SimpleNamespace(device="cpu", release_cached_memory=lambda: calls.append("released"))
    topology = SimpleNamespace(platform=platform, world_size=1)
    free_memory_for_servers(topology)
    assert calls == ["released"]


@pytest.mark.parametrize(
    ("error", "num_releases"), [(None, 1), (VerifierAwayError("away"), 1), (RuntimeError("of one rank"), 0)]
)
def test_the_engine_releases_its_memory_unless_an_error_may_concern_one_rank_alone(error, num_releases):
    calls = []
    engine = SimpleNamespace(release_memory=lambda: calls.append("released"))
    with nullcontext() if error is None else pytest.raises(type(error)), release_after(engine):
        if error is not None:
            raise error
    assert calls == ["released"] * num_releases
