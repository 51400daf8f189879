import math
from dataclasses import replace

from megatron_prime.observability.rollout_log import FileInfo, step_path, write_rollouts
from megatron_prime.observability.rollout_log.schema import COLUMNS
from megatron_prime.rollout.replay import LoggedGroups
from megatron_prime.rollout.sampled_groups import SampledGroup
from megatron_prime.training.rollout_rows import rows_of_groups
from megatron_prime.types import FinishReason, Prompt, Rollout, Turn
from tests.support.tokenizers import word_tokenizer

TOKENIZER = word_tokenizer(["two", "plus", "Four.", "Done."])
EOS = TOKENIZER.eos_token_id


def group(index, outcomes, verdict="kept"):
    prompt = Prompt(index, (0, 1, 0, EOS), "4", "sums", "math")
    rollouts = [
        Rollout(prompt, sample, (2, 3, EOS), (-1.0, -2.0, -3.0), FinishReason.STOP, 5).with_outcome(
            outcome, "ok"
        )
        for sample, outcome in enumerate(outcomes)
    ]
    return SampledGroup(rollouts, verdict, 1)


def test_a_row_holds_everything_that_is_known_of_a_response():
    figures = {(1, 0): {"advantages": [1.0, 2.0, 3.0]}}
    rows = list(rows_of_groups([group(7, [1.0]), group(8, [0.0, math.nan])], TOKENIZER, figures))
    assert [(row["group"], row["sample"], row["outcome_reward"]) for row in rows] == [
        (0, 0, 1.0),
        (1, 0, 0.0),
        (1, 1, None),
    ]
    assert "advantages" not in rows[0]
    assert rows[1] == {
        "group": 1,
        "sample": 0,
        "prompt_index": 8,
        "source": "sums",
        "ability": "math",
        "ground_truth": "4",
        "prompt": "two plus two <eos>",
        "prompt_token_ids": (0, 1, 0, EOS),
        "response": "Four. Done.",
        "response_token_ids": (2, 3, EOS),
        "token_ends": [5, 11, 11],
        "step_ends": [1, 3],
        "outcome_reward": 0.0,
        "reason": "ok",
        "finish_reason": "stop",
        "policy_version": 5,
        "filter": "kept",
        "rollout_logprobs": (-1.0, -2.0, -3.0),
        "advantages": [1.0, 2.0, 3.0],
    }
    required = {column.name for column in COLUMNS if not column.is_optional}
    assert all(required <= row.keys() for row in rows)


def test_a_row_of_several_turns_says_who_wrote_what():
    """The reply "Done." and the turn after it are no step of the turn before."""
    turns = (Turn(2, 4, reward=0.5), Turn(6, 6))
    rollout = replace(
        group(7, [1.0]).rollouts[0],
        response_ids=(2, EOS, 3, 3, 2, EOS),
        rollout_logprobs=(-1.0, -1.0, 0.0, 0.0, -1.0, -1.0),
        turns=turns,
    )
    (row,) = rows_of_groups([SampledGroup([rollout], "kept", 0)], TOKENIZER)
    assert row["response"] == "Four. Done. Done. Four."
    assert row["policy_mask"] == [True, True, False, False, True, True]
    assert (row["turn_ends"], row["turn_rewards"], row["step_ends"]) == ([4, 6], [0.5, 0.0], [4, 6])


def test_a_replay_reads_the_response_that_was_logged(tmp_path):
    turns = (Turn(1, 2, reward=0.25), Turn(3, 3))
    spans = ((5, 0, 1), (6, 1, 3))
    several = replace(group(7, [1.0]).rollouts[0], turns=turns, version_spans=spans)
    rows = rows_of_groups([SampledGroup([several], "kept", 0)], TOKENIZER)
    info = FileInfo(1, num_groups=1, num_groups_sampled=1)
    write_rollouts(step_path(tmp_path, 1), info, rows)
    ((replayed,),), _ = LoggedGroups(tmp_path, (9, 9)).sampled(0)
    assert replayed == several
