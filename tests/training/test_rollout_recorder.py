import threading
from concurrent.futures import wait
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from megatron_prime.config.tables.observability.rollout_log import RolloutLogConfig
from megatron_prime.models.forward import Scores
from megatron_prime.observability.rollout_log import FileInfo, RolloutFile, logged_steps
from megatron_prime.observability.rollout_log.folder import RolloutLog
from megatron_prime.rollout.sampled_groups import SampledGroup
from megatron_prime.training.rollout_recorder import RolloutRecorder
from megatron_prime.training.trainer import TrainedBatch
from megatron_prime.types import FinishReason, Prompt, Rollout, RolloutBatch
from tests.support.tokenizers import word_tokenizer

GROUP_SIZE = 2
TOKENIZER = word_tokenizer(["a", "b", "c"])


def sampled(verdicts):
    """Return groups with these verdicts, whose responses have 1, 2, 3, ... tokens."""
    groups, num_kept, length = [], 0, 0
    for index, verdict in enumerate(verdicts):
        rollouts = []
        for sample in range(GROUP_SIZE):
            length += 1
            ids = tuple(position % 3 for position in range(length))
            rollout = Rollout(
                Prompt(index, (0,), "x"), sample, ids, (-1.0,) * length, FinishReason.STOP, 4, float(sample)
            )
            rollouts.append(rollout)
        is_kept = verdict == "kept"
        groups.append(SampledGroup(rollouts, verdict, num_kept if is_kept else None))
        num_kept += is_kept
    return groups


def recorder(folder, **settings):
    return RolloutRecorder(RolloutLogConfig(**settings), RolloutLog(folder), TOKENIZER, FileInfo(0, beta=0.5))


def batch_of(groups):
    kept = [group.rollouts for group in groups if group.batch_index is not None]
    return RolloutBatch.from_rollouts(
        [rollout for rollouts in kept for rollout in rollouts],
        [number for number, rollouts in enumerate(kept) for _ in rollouts],
    )


def trained_of(batch, with_prm=True):
    def figure():
        return torch.rand(batch.response_mask_BT.shape) * batch.response_mask_BT

    prm = (figure(), figure()) if with_prm else (None, None)
    return TrainedBatch(batch, Scores(figure(), figure()), figure(), *prm, figure())


def read(folder, step):
    with RolloutFile(logged_steps(folder)[step]) as file:
        return file.info, list(file.rows())


@pytest.mark.parametrize("most", ["all", 3])
def test_each_token_has_the_values_of_its_place_in_the_batch(tmp_path, most):
    groups = sampled(["dropped_too_hard", "kept", "trimmed", "kept", "kept", "dropped_too_easy"])
    batch = batch_of(groups)
    trained = trained_of(batch)
    figures = {
        "policy_logprobs": trained.old.logprobs_BT,
        "prm_logprobs": trained.prm_logprobs_BT,
        "ref_logprobs": trained.ref_logprobs_BT,
        "process_rewards": trained.process_rewards_BT,
        "advantages": trained.advantages_BT,
        "entropy": trained.old.entropy_BT,
    }
    log = recorder(tmp_path, groups_per_step=most)
    log.observe(11, groups)
    log.note(12, trained)
    log.write()
    log.finish()
    info, rows = read(tmp_path, 12)
    assert (info.step, info.policy_version, info.beta) == (12, 4, 0.5)
    assert info.num_groups_sampled == 6
    assert info.num_groups == len(rows) // GROUP_SIZE == (6 if most == "all" else 3)
    lines = {(rollout.prompt.index, rollout.sample_index): row for row, rollout in enumerate(batch.rollouts)}
    for row in rows:
        line = lines.get((row["prompt_index"], row["sample"]))
        length = len(row["response_token_ids"])
        assert (row["mask"] is None) == (line is None)
        for name in figures:
            if line is None:
                assert row[name] is None
            else:
                np.testing.assert_array_equal(row[name], figures[name][line, :length].numpy())
    assert {row["filter"] for row in rows} >= {"kept"}


def test_responses_left_out_of_the_losses_are_masked(tmp_path):
    from dataclasses import replace

    groups = sampled(["kept", "kept"])
    batch = replace(batch_of(groups), is_trained_B=torch.tensor([True, False, True, True]))
    log = recorder(tmp_path)
    log.observe(0, groups)
    log.note(1, trained_of(batch, with_prm=False))
    log.write()
    log.finish()
    _, rows = read(tmp_path, 1)
    assert [row["mask"] for row in rows] == [[True], [False, False], [True] * 3, [True] * 4]
    assert all(row["prm_logprobs"] is None for row in rows)


def test_a_step_without_a_batch_is_logged_without_values(tmp_path):
    log = recorder(tmp_path)
    log.observe(0, sampled(["dropped_too_hard"] * 2))
    log.write()
    log.finish()
    _, rows = read(tmp_path, 1)
    assert [(row["filter"], row["advantages"]) for row in rows] == [("dropped_too_hard", None)] * 4


def test_the_first_step_and_every_nth_are_logged(tmp_path):
    log = recorder(tmp_path, every_steps=3)
    groups = sampled(["kept"])
    for step_index in range(7):
        log.observe(step_index, groups)
        log.note(step_index + 1, trained_of(batch_of(groups)))
        log.write()
    log.finish()
    assert list(logged_steps(tmp_path)) == [1, 3, 6]


def test_nothing_is_logged_without_groups(tmp_path):
    log = recorder(tmp_path / "rollouts", groups_per_step=0)
    log.observe(0, sampled(["kept"]))
    log.write()
    log.finish()
    assert not (tmp_path / "rollouts").exists()


@pytest.mark.parametrize("reported_by", ["write", "finish"])
def test_a_step_that_cannot_be_written_is_left_out(tmp_path, reported_by):
    folder = tmp_path / "rollouts"
    log = recorder(folder)
    folder.touch()
    log.observe(0, sampled(["kept"]))
    log.write()
    if reported_by == "finish":
        with pytest.raises(OSError, match="rollouts"):
            log.finish()
    wait([log._thread.submit(folder.unlink)])  # behind the write that fails
    log.observe(1, sampled(["kept"]))
    if reported_by == "write":
        with pytest.raises(OSError, match="rollouts"):
            log.write()
    else:
        log.write()
    log.finish()
    assert list(logged_steps(folder)) == [2]


def test_a_step_is_written_while_training_goes_on_and_the_next_one_after_it(tmp_path):
    may_end = threading.Event()

    @contextmanager
    def fence():
        assert may_end.wait(60)
        yield

    log = RolloutRecorder(
        RolloutLogConfig(), RolloutLog(tmp_path, fence=fence), TOKENIZER, FileInfo(0, beta=0.5)
    )
    log.observe(0, sampled(["kept"]))
    log.write()
    log.observe(1, sampled(["kept"]))
    assert not logged_steps(tmp_path)
    timer = threading.Timer(0.1, may_end.set)
    timer.start()
    log.write()
    assert 1 in logged_steps(tmp_path)
    log.close()
    assert list(logged_steps(tmp_path)) == [1, 2]


def test_a_run_that_another_attempt_has_taken_over_writes_nothing(tmp_path):
    def fence():
        raise ValueError("attempt 2 has it now")

    folder = tmp_path / "rollouts"
    log = RolloutRecorder(RolloutLogConfig(), RolloutLog(folder, fence=fence), TOKENIZER, FileInfo(0))
    log.observe(0, sampled(["kept"]))
    log.write()
    with pytest.raises(ValueError, match="attempt 2 has it now"):
        log.finish()
    assert not folder.exists()
