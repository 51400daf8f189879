"""A sync is either complete or an error."""

import pytest
import torch

from megatron_prime.rollout.engine import NO_WEIGHTS, WeightSyncError
from megatron_prime.rollout.weight_intake import WeightIntake, tensor_checksum
from megatron_prime.types import WeightBlock


@pytest.fixture
def targets():
    return {"a": torch.zeros(6, 4), "b": torch.zeros(3)}


@pytest.fixture
def intake(targets):
    intake = WeightIntake(targets, {"tied": "a"})
    intake.begin(1)
    return intake


def bucket(*blocks):
    return [WeightBlock(*block) for block in blocks]


def test_blocks_in_any_order_make_the_whole(intake, targets):
    a = torch.randn(6, 4)
    intake.load(bucket(("a", 1, 3, a[:, 3:]), ("b", 0, 0, torch.ones(3))))
    intake.load(bucket(("a", 1, 0, a[:, :3])))
    assert intake.policy_version == NO_WEIGHTS
    intake.end()
    assert intake.policy_version == 1
    assert torch.equal(targets["a"], a)
    assert intake.checksums() == {"a": tensor_checksum(a), "b": tensor_checksum(torch.ones(3))}


def test_an_incomplete_sync_names_the_missing_tensors_and_leaves_no_version(intake):
    intake.load(bucket(("a", 0, 0, torch.zeros(5, 4))))
    with pytest.raises(WeightSyncError, match=r"version 1 .*a \(20 of 24\), b \(0 of 3\)"):
        intake.end()
    assert intake.policy_version == NO_WEIGHTS
    with pytest.raises(WeightSyncError, match="no weight sync has succeeded"):
        intake.require_weights()
    intake.begin(2)
    intake.load(bucket(("a", 0, 0, torch.zeros(6, 4)), ("b", 0, 0, torch.zeros(3))))
    intake.end()
    assert intake.policy_version == 2


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([("a", 0, 0, torch.zeros(4, 4)), ("a", 0, 3, torch.zeros(3, 4))], "already written"),
        ([("a", 0, 0, torch.zeros(6, 4)), ("a", 1, 0, torch.zeros(6, 4))], "already written"),
        ([("a", 0, 0, torch.zeros(6, 4)), ("a", 0, 2, torch.zeros(1, 4))], "already written"),
        ([("a", 0, 4, torch.zeros(2, 4)), ("a", 1, 0, torch.zeros(6, 4))], "along dim 0 and along dim 1"),
        ([("a", 0, 0, torch.zeros(2, 4)), ("a", 1, 0, torch.zeros(6, 2))], "along dim 0 and along dim 1"),
        ([("a", 0, 4, torch.zeros(3, 4))], "does not fit"),
        ([("a", 0, -1, torch.zeros(3, 4))], "does not fit"),
        ([("a", 0, 0, torch.zeros(6, 3))], "does not fit"),
        ([("a", 2, 0, torch.zeros(6, 4))], "does not fit"),
        ([("b", 0, 0, torch.zeros(3, 1))], "does not fit"),
        ([("c", 0, 0, torch.zeros(1))], "no tensor 'c'"),
        ([("tied", 0, 0, torch.zeros(6, 4))], "tied to a"),
    ],
)
def test_wrong_blocks_are_refused(intake, blocks, message):
    with pytest.raises(ValueError, match=message):
        intake.load(bucket(*blocks))


def test_calls_out_of_order_are_refused(intake):
    with pytest.raises(WeightSyncError, match="still open"):
        intake.begin(2)
    with pytest.raises(WeightSyncError, match="is open"):
        intake.require_weights()
    with pytest.raises(WeightSyncError):
        intake.end()
    with pytest.raises(WeightSyncError, match="outside a sync"):
        intake.load(bucket())
    with pytest.raises(WeightSyncError, match="begin one first"):
        intake.end()
    with pytest.raises(ValueError, match="negative"):
        intake.begin(-1)


def test_a_whole_sync_is_received_at_once_and_an_error_leaves_no_sync_open(targets):
    intake = WeightIntake(targets)
    whole = [bucket(("a", 0, 0, torch.ones(6, 4))), bucket(("b", 0, 0, torch.ones(3)))]
    intake.receive(3, whole)
    assert intake.policy_version == 3 and targets["b"].tolist() == [1.0] * 3
    for broken in ([bucket(("c", 0, 0, torch.zeros(1)))], whole[:1]):
        with pytest.raises((ValueError, WeightSyncError)):
            intake.receive(4, broken)
        assert intake.policy_version == NO_WEIGHTS
    intake.receive(5, iter(whole))
    assert intake.policy_version == 5


def test_a_closed_intake_refuses_syncs(intake):
    intake.close()
    assert intake.checksums() == {} and intake.policy_version == NO_WEIGHTS
    with pytest.raises(WeightSyncError, match="closed"):
        intake.receive(2, [])


def test_checksums_see_every_bit_and_the_dtype():
    tensor = torch.randn(5, 7)
    changed = tensor.clone()
    changed[3, 2] = torch.nextafter(changed[3, 2], torch.tensor(9.0))
    assert tensor_checksum(tensor) == tensor_checksum(tensor.t().contiguous().t())
    assert len({tensor_checksum(each) for each in (tensor, changed, tensor.bfloat16())}) == 3
