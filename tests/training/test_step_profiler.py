"""A captured step has a timeline with its operators and phases; a failing profiler costs a warning."""

import resource
import signal
import time

import pytest
import torch

from megatron_prime.config.tables.observability.profile import ProfileConfig
from megatron_prime.observability import activity
from megatron_prime.observability.metrics import Metrics
from megatron_prime.parallel.platform import Platform
from megatron_prime.training.step_profiler import StepProfiler
from tests.support.trace_files import read_trace

PLATFORM = Platform(torch.device("cpu"), "gloo", torch.float32, None)


def profiler_of(folder, warnings, rank=0, **settings) -> StepProfiler:
    return StepProfiler(ProfileConfig(**settings), folder, rank, PLATFORM, warnings.append)


def train(profiler: StepProfiler, num_steps: int = 3) -> Metrics:
    """Run steps, and return the metrics of the last one."""
    metrics = Metrics()
    engine = activity.worker("an engine", activity.ENGINE)
    for number in range(1, num_steps + 1):
        metrics = Metrics()
        with profiler.step(number), metrics.timed("step"):
            with metrics.timed("rollout"):
                for _ in engine.each([[1, 2], [3]]):
                    time.sleep(0.01)
            with metrics.timed("policy"):
                (torch.ones(64, 64) @ torch.ones(64, 64)).sum()
    return metrics


def test_a_captured_step_has_operators_phases_and_workers_on_one_clock(tmp_path):
    warnings: list[str] = []
    metrics = train(profiler_of(tmp_path / "profile", warnings, steps=(3,)))
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["step-00000003-rank-0.json.gz"]
    assert warnings == []
    trace = read_trace(tmp_path / "profile" / "step-00000003-rank-0.json.gz")
    phases = {event["name"]: event for event in trace.track("phases")}
    assert list(phases) == ["step", "rollout", "policy"]
    for name, event in phases.items():
        # time/*_s is measured around the phase by another clock.
        assert event["dur"] / 1e6 == pytest.approx(metrics[f"time/{name}_s"], abs=0.005)
    sampled = [event for event in trace.track("an engine") if event["name"] == "sampling"]
    assert sum(event["dur"] for event in sampled) >= 20_000
    (annotation,) = [each for each in trace.events if each["name"] == "step 3" and each["ph"] == "X"]
    assert annotation["ts"] == pytest.approx(phases["step"]["ts"], abs=100_000)
    (product,) = [each for each in trace.events if each["name"] == "aten::mm" and each["ph"] == "X"]
    begin, end = phases["policy"]["ts"], phases["policy"]["ts"] + phases["policy"]["dur"]
    assert begin - 5_000 <= product["ts"] <= product["ts"] + product["dur"] <= end + 5_000


def test_phases_alone_need_no_torch_profiler(tmp_path):
    warnings: list[str] = []
    train(profiler_of(tmp_path, warnings, steps=(1,), operators=False))
    trace = read_trace(tmp_path / "step-00000001-rank-0.json.gz")
    assert [event["name"] for event in trace.track("phases")] == ["step", "rollout", "policy"]
    assert not any(event["name"].startswith("aten::") for event in trace.events)


@pytest.mark.parametrize(("rank", "settings"), [(0, {}), (1, {"steps": (1,)})])
def test_other_steps_and_ranks_write_nothing(tmp_path, rank, settings):
    train(profiler_of(tmp_path / "profile", [], rank, **settings))
    assert not (tmp_path / "profile").exists()


def test_a_step_that_fails_leaves_its_error_and_no_timeline(tmp_path):
    profiler = profiler_of(tmp_path, [], steps=(1, 2))
    with pytest.raises(FloatingPointError), profiler.step(1):
        raise FloatingPointError
    with profiler.step(2):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002-rank-0.json.gz"]


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path):
    (tmp_path / "profile").write_text("a file")
    warnings: list[str] = []
    train(profiler_of(tmp_path / "profile", warnings, steps=(2,)))
    (warning,) = warnings
    assert warning.startswith("no timeline of this step (training continues): ")


def test_a_full_disk_costs_a_warning_and_leaves_no_partial_file(tmp_path):
    """Like a full disk, a limit on the size of files ends a write in its middle."""
    warnings: list[str] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        train(profiler_of(tmp_path, warnings, steps=(2,)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(warnings) == 1 and "no timeline" in warnings[0]
    assert list(tmp_path.iterdir()) == []


def test_too_many_steps_are_refused():
    with pytest.raises(ValueError, match="at most 16"):
        ProfileConfig(steps=tuple(range(1, 18)))
