"""Offloading frees device memory, restores every bit, and a resumed run equals an uninterrupted one."""

import pytest
import torch

from megatron_prime.parallel.platform import Platform
from megatron_prime.training.residency import Part, Residency
from tests.support.distributed_runner import run_distributed
from tests.support.tiny_models import save_tiny_model
from tests.support.training_batches import ragged_batch
from tests.training import memory_worker

LAYOUTS = [("dp2", "fp32"), ("tp2+sp", "fp32"), ("dp2", "bf16")]
RECOMPUTES = {
    "none": {"granularity": "none"},
    "selective": {"granularity": "selective"},
    "only attention": {"granularity": "selective", "modules": ("core_attn",)},
    "full": {"granularity": "full"},
    "full by twos": {"granularity": "full", "num_layers": 2},
    "half of the layers": {"granularity": "full", "method": "block", "num_layers": 2},
}
PLATFORM = Platform(torch.device("cpu"), "gloo", torch.float32, None)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offload")
    save_tiny_model("qwen3", folder / "model")
    shallow = save_tiny_model("shallow qwen3", folder / "shallow")
    return run_distributed(
        memory_worker.offload_and_recompute,
        2,
        LAYOUTS,
        folder / "model",
        folder / "shallow",
        ragged_batch(shallow),
        folder,
        RECOMPUTES,
    )


@pytest.fixture(params=LAYOUTS, ids=" ".join)
def of_ranks(request, results):
    return [of_rank["offload"][request.param] for of_rank in results]


def test_scores_losses_and_weights_are_bit_equal_to_those_without_offloading(of_ranks):
    for of_rank in of_ranks:
        assert of_rank["same"] == [True] * memory_worker.NUM_STEPS
        assert of_rank["weights"]


def test_a_run_resumed_with_offloading_equals_an_uninterrupted_one_without(of_ranks):
    assert all(of_rank["resumed"] for of_rank in of_ranks)


def test_offloaded_parts_take_no_device_memory_between_their_phases(of_ranks):
    stays = {("policy", "weights")}
    for of_rank in of_ranks:
        for plain, offloaded in of_rank["bytes"]:
            assert min(plain.values()) > 0
            for key, size in offloaded.items():
                assert size == (plain[key] if key in stays else 0), key
        assert of_rank["first"]["reference", "weights"] == 0, "offloaded from the start"
        last_plain, _ = of_rank["bytes"][-1]
        for part in ("weights", "gradients", "optimizer"):
            assert of_rank["back"]["prm", part] == last_plain["prm", part]
        kept = {"policy": ("optimizer",), "prm": ("weights", "optimizer"), "reference": ("weights",)}
        for role, parts in kept.items():
            assert of_rank["host"][role] == sum(last_plain[role, part] for part in parts), (
                "gradients have no copy"
            )


def test_the_reference_holds_only_weights(of_ranks):
    for of_rank in of_ranks:
        plain, _ = of_rank["bytes"][-1]
        assert [part for role, part in plain if role == "reference"] == ["weights"]
        assert plain["reference", "weights"] == of_rank["reference"]
        assert of_rank["gradients of the reference"] == [None] * len(of_rank["gradients of the reference"])
        assert plain["prm", "gradients"] >= of_rank["reference"], "memory that the reference does not need"


def test_without_a_reference_of_its_own_a_run_holds_one_model_fewer(results):
    for of_rank in results:
        freeze, policy = of_rank["modes"]["freeze"], of_rank["modes"]["policy"]
        (num_parameters,) = set(freeze.values())
        assert freeze == dict.fromkeys(("policy", "prm", "reference"), num_parameters)
        assert policy == dict.fromkeys(("policy", "prm"), num_parameters)


def test_memory_is_reported_by_phase_and_role(of_ranks):
    for of_rank in of_ranks:
        plain, offloaded = of_rank["memory"]
        (sizes, _) = of_rank["bytes"][-1]
        whole = {
            role: sum(size for (owner, _), size in sizes.items() if owner == role) / 2**30
            for role in ("policy", "prm", "reference")
        }
        for phase in ("logprobs", "prm", "policy"):
            for role, size in whole.items():
                assert plain[f"memory/{phase}/{role}_gib"] == pytest.approx(size, rel=1e-12)
        weights = sizes["policy", "weights"] / 2**30
        assert offloaded == pytest.approx(
            {
                "memory/logprobs/policy_gib": weights,
                "memory/logprobs/prm_gib": 0.0,
                "memory/logprobs/reference_gib": whole["reference"],
                "memory/prm/policy_gib": weights,
                "memory/prm/prm_gib": whole["prm"],
                "memory/prm/reference_gib": 0.0,
                "memory/policy/policy_gib": whole["policy"],
                "memory/policy/prm_gib": 0.0,
                "memory/policy/reference_gib": 0.0,
            },
            rel=1e-12,
        )


@pytest.mark.parametrize("layout", ["dp2", "tp2+sp"])
@pytest.mark.parametrize("name", list(RECOMPUTES)[1:])
def test_recomputation_changes_no_result(name, layout, results):
    for of_rank in results:
        plain, found = of_rank["recompute"][layout]["none"], of_rank["recompute"][layout][name]
        for mine, other in zip(found["gradients"], plain["gradients"], strict=True):
            assert other.abs().max() > 1e-4
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            found["scores"].logprobs_BT, plain["scores"].logprobs_BT, rtol=0, atol=1e-6
        )
        assert found["same"], "scoring without gradients gives the same bits"


@pytest.mark.parametrize("layout", ["dp2", "tp2+sp"])
def test_recomputation_lowers_the_memory_of_activations(layout, results):
    for of_rank in results:
        peaks = {name: found["peak"] for name, found in of_rank["recompute"][layout].items()}
        assert peaks["only attention"] < peaks["none"]
        assert peaks["selective"] < 0.8 * peaks["none"]
        assert peaks["half of the layers"] < 0.75 * peaks["none"]
        assert peaks["full"] < 0.5 * peaks["none"]
        assert peaks["full"] < peaks["full by twos"] < peaks["none"]


def residency(tensors, content="kept", offloaded=("weights",)):
    return Residency(PLATFORM, {"weights": Part(lambda: tensors, content)}, offloaded)


def test_views_of_one_storage_are_copied_once_and_restored():
    buffer = torch.arange(100.0)
    views = [buffer[:40].view(4, 10), buffer[40:]]
    expected = [view.clone() for view in views]
    role = residency(views)
    assert role.bytes_here() == 400
    role.park()
    assert (role.bytes_here(), buffer.untyped_storage().nbytes(), role.host_bytes()) == (0, 0, 400)
    with role.hold(), role.hold("weights"):
        assert all(map(torch.equal, views, expected))
        views[1].mul_(2)
    assert role.bytes_here() == 0
    with role.hold():
        assert torch.equal(buffer, torch.cat([expected[0].flatten(), 2 * expected[1]]))
    assert role.most_bytes == 400


def test_constant_parts_are_copied_once_and_discarded_parts_never():
    constant, dropped = torch.ones(10), torch.ones(10)
    for tensor, content, value in ((constant, "constant", 1.0), (dropped, "dropped", 0.0)):
        role = residency([tensor], content)
        role.park()
        with role.hold():
            assert torch.equal(tensor, torch.full((10,), value))
            tensor.fill_(5.0)
        with role.hold():
            assert torch.equal(tensor, torch.full((10,), value)), "the change was not written back"
    assert role.host_bytes() == 0


def test_parts_stay_without_offloading_and_are_offloaded_after_an_error():
    stays, leaves = residency([torch.ones(4)], offloaded=()), residency([torch.ones(4)])
    for role, here in ((stays, 16), (leaves, 0)):
        with pytest.raises(RuntimeError, match="fault"), role.hold():
            raise RuntimeError("fault")
        assert role.bytes_here() == here


def test_replaced_optimizer_moments_leave_no_host_copy():
    tensors = [torch.ones(10)]
    role = residency(tensors)
    role.park()
    with role.hold():
        tensors[:] = [torch.full((7,), 3.0)]
    assert role.host_bytes() == 28
    with role.hold():
        assert torch.equal(tensors[0], torch.full((7,), 3.0))


class LateMark:
    """An event after pending copies to the host, which are performed only on `synchronize`."""

    def __init__(self, work):
        self._work = work

    def synchronize(self):
        work, self._work = self._work, []
        for host, content in work:
            host.copy_(content)


class LatePlatform:
    """A simulated GPU on which a copy to the host completes only when someone waits for its event.

    A copy has the content of the device memory at the time of the call, as in stream order. Like torch's allocator, it
    keeps freed memory until the copy from it is complete.
    """

    def __init__(self):
        self.log = []

    def host_buffers(self, num_bytes):
        return list(torch.full((num_bytes,), 77, dtype=torch.uint8).split(5))

    def copy_to_host(self, pairs, after=None):
        if after is not None:
            after.synchronize()
        mark = LateMark([(host, device.clone()) for host, device in pairs])
        self.log.append(("to host", mark, after))
        return mark

    def copy_to_device(self, pairs, after=None):
        if after is not None:
            after.synchronize()
        for device, host in pairs:
            device.copy_(host)
        mark = LateMark([])
        self.log.append(("to device", mark, after))
        return mark


@pytest.mark.parametrize("content", ["kept", "constant"])
def test_restoring_a_part_waits_for_its_pending_copy(content):
    tensor, platform = torch.arange(10.0), LatePlatform()
    role = Residency(platform, {"weights": Part(lambda: [tensor], content)}, ("weights",))
    role.park()
    ((_, left, _),) = platform.log
    assert tensor.untyped_storage().nbytes() == 0, "offloading does not wait for the copy"
    for _ in range(2):
        with role.hold():
            assert torch.equal(tensor, torch.arange(10.0))
    assert platform.log[1][2] is left


def test_copies_of_one_part_are_ordered_and_independent_of_other_parts():
    tensors, platform = {"weights": torch.ones(4), "optimizer": torch.ones(4)}, LatePlatform()
    parts = {name: Part(lambda tensor=tensor: [tensor]) for name, tensor in tensors.items()}
    role = Residency(platform, parts, tuple(parts))
    role.park()
    for step in range(3):
        with role.hold("weights"):
            assert torch.equal(tensors["weights"], torch.full((4,), 1.0 + step)), (
                "the last change, not the first copy"
            )
            tensors["weights"].add_(1)
    marks = [(mark, after) for _, mark, after in platform.log]
    mine = [pair for index, pair in enumerate(marks) if index != 1]
    assert [after for _, after in mine] == [None, *(mark for mark, _ in mine[:-1])]
    assert all(after is not marks[1][0] for _, after in marks), (
        "no other copy waits for that of the optimizer"
    )


def test_a_part_is_unchanged_when_host_memory_runs_out():
    tensor, platform = torch.arange(10.0), LatePlatform()

    def no_memory(num_bytes):
        raise RuntimeError("out of pinned memory")

    platform.host_buffers = no_memory
    role = Residency(platform, {"weights": Part(lambda: [tensor])}, ("weights",))
    with pytest.raises(RuntimeError, match="pinned"):
        role.park()
    assert torch.equal(tensor, torch.arange(10.0)) and role.bytes_here() == 40
