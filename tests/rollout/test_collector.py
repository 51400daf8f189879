"""Collecting a batch: its groups and their order, shortage and statistics, and collection with a real model."""

import json
import math
import random
import time

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.engines.local.engine import LocalEngine
from megatron_prime.rollout.collector import BatchSize, Collector, NoBatch, step_ids_of_response
from megatron_prime.rollout.prompt_queue import PromptQueue
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.stream_keys import training_stream_key
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import FinishReason, SamplingParams, Turn
from tests.support.rollout_doubles import (
    BAD,
    BROKEN,
    BUILDING,
    GOOD,
    CountingStream,
    FixedOutcome,
    ScriptedEngine,
    ScriptedStream,
    WordTokenizer,
    run_on_ranks,
    verify_words,
)
from tests.support.tiny_models import save_tiny_model

MIXED = [[GOOD], [3, BAD]]
EASY = [[GOOD], [GOOD]]
HARD = [[BAD], [4, 4, BAD]]
ERROR = [[GOOD], [BROKEN]]


def make_collector(engine, stream=None, prompts_per_step=4, group_size=2, **changes):
    filter_fields = {name: changes.pop(name) for name in list(changes) if name in FilterConfig.model_fields}
    sizes = {name: changes.pop(name) for name in ("rows_multiple_of", "max_in_flight") if name in changes}
    return Collector(
        engine,
        stream or PromptQueue(CountingStream()),
        changes.pop("verifier", None) or RolloutVerifier(verify_words, WordTokenizer()),
        SamplingParams(8),
        FilterConfig(**filter_fields),
        BatchSize(prompts_per_step, group_size, **sizes),
        **changes,
    )


def indices(batch):
    return [rollout.prompt.index for rollout in batch.rollouts]


def test_groups_that_are_all_kept_are_the_batch():
    engine = ScriptedEngine(lambda index: MIXED)
    batch = make_collector(engine).collect(3)
    assert (engine.submitted, engine.stream_keys) == ([4], [training_stream_key(3)])
    assert indices(batch) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch.group_ids_B.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch.outcome_rewards_B.tolist() == [1, 0] * 4
    assert batch.response_mask_BT.tolist() == [[True, False], [True, True]] * 4
    assert batch.step_ids_BT is None
    assert batch.throughput == {"groups_aborted": 0}


def test_dropped_groups_are_replaced_and_counted():
    kinds = [EASY, MIXED, HARD, ERROR, MIXED]
    stream = PromptQueue(CountingStream(sources=("algebra", "geometry")))
    engine = ScriptedEngine(
        lambda index: kinds[index % 5],
        finish=lambda index, sample: FinishReason.LENGTH if index == 1 and sample == 1 else FinishReason.STOP,
    )
    batch = make_collector(engine, stream).collect(2)
    assert engine.stream_keys == [training_stream_key(2)]
    # The fourth kept group is that of prompt 9, with which the step ends, however many were sampled.
    assert stream.state_dict() == {"num_taken": 10}
    assert indices(batch) == [1, 1, 4, 4, 6, 6, 9, 9]
    assert not batch.outcome_rewards_B.isnan().any()
    assert batch.group_ids_B.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    rewards = {0: (1, 1), 1: (1, 0), 2: (0, 0), 3: (1,), 4: (1, 0)}
    known = [reward for index in range(10) for reward in rewards[index % 5]]
    even = [reward for index in range(0, 10, 2) for reward in rewards[index % 5]]
    odd = [reward for index in range(1, 10, 2) for reward in rewards[index % 5]]
    lengths = [len(ids) for index in range(10) for ids in kinds[index % 5]]
    assert batch.stats == pytest.approx(
        {
            "num_prompts_sampled": 10,
            "num_rollouts_sampled": 20,
            "num_groups_kept": 4,
            "num_groups_dropped_aborted": 0,
            "num_groups_dropped_verifier_error": 2,
            "num_groups_dropped_truncated": 0,
            "num_groups_dropped_too_hard": 2,
            "num_groups_dropped_too_easy": 2,
            "num_groups_trimmed": 0,
            "num_verifier_errors": 2,
            "accuracy_sampled": sum(known) / len(known),
            "accuracy_batch": 0.5,
            "truncated_fraction": 1 / 20,
            "mean_response_tokens": sum(lengths) / 20,
            "policy_version": 5,
            "accuracy_by_source/algebra": sum(even) / len(even),
            "accuracy_by_source/geometry": sum(odd) / len(odd),
        }
    )


def test_the_prompts_of_a_step_are_bounded():
    engine = ScriptedEngine(lambda index: MIXED if index == 0 else HARD)
    stream = PromptQueue(CountingStream())
    collector = make_collector(engine, stream, max_prompts_factor=2.9, on_shortage="partial")
    assert indices(collector.collect(0)) == [0, 0]
    assert sum(engine.submitted) == stream.state_dict()["num_taken"] == 11
    exact = make_collector(engine, max_prompts_factor=1.0)
    exact.collect(0)
    assert engine.submitted == [4], "a step may sample its prompts alone, whatever is dropped"


def sequential(script, num_steps, prompts_per_step=4, most=20):
    """Collect one prompt after the other: for each step, (prompt, accuracy, is kept), and the prompts of the batch."""
    prompt, steps = 0, []
    for _ in range(num_steps):
        seen, batch = [], []
        while len(batch) < prompts_per_step and len(seen) < most:
            outcomes = [float(ids[-1] == GOOD) for ids in script(prompt)]
            accuracy = sum(outcomes) / len(outcomes)
            seen.append((prompt, accuracy, 0.2 <= accuracy <= 0.8))
            batch += [prompt] * (0.2 <= accuracy <= 0.8)
            prompt += 1
        steps.append((seen, batch))
    return steps


def by_chance(seed, num_ranks):
    """Return for each rank the same choice: at each look some of the groups in flight, in any order, or none."""

    def choice():
        draws = random.Random(seed)
        return lambda numbers: draws.sample(numbers, draws.randint(0, len(numbers)))

    return [choice() for _ in range(num_ranks)]


class LateVerifier:
    """Verifies words, each call after a delay by chance."""

    def __init__(self, seed):
        self.draws = random.Random(seed)

    def __call__(self, samples):
        time.sleep(self.draws.choice([0, 0, 0.001, 0.004]))
        return verify_words(samples)


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize(
    "finish_next", [lambda numbers: numbers[-1:], lambda numbers: numbers[:1], lambda numbers: numbers, None]
)
def test_whatever_finishes_first_the_batches_are_those_of_one_prompt_after_the_other(num_ranks, finish_next):
    """With any bound of what is in flight, any order of the engine, late verifiers, and any number of ranks."""
    for seed, max_in_flight in enumerate([2, 6, 22, None]):
        kinds = random.Random(seed).choices([MIXED, EASY, HARD], [2, 1, 3], k=200)
        wanted = sequential(kinds.__getitem__, num_steps=4)

        def collect(ranks, seed=seed, kinds=kinds, max_in_flight=max_in_flight):
            engine = ScriptedEngine(
                kinds.__getitem__, finish_next=finish_next or by_chance(seed, num_ranks)[ranks.rank]
            )
            verifier = RolloutVerifier(LateVerifier(10 * seed + ranks.rank), WordTokenizer(), ranks)
            stream = PromptQueue(CountingStream())
            collector = make_collector(
                engine, stream, max_prompts_factor=5.0, max_in_flight=max_in_flight, verifier=verifier
            )
            steps = []
            for step in range(4):
                batch = collector.collect(step)
                steps.append((collector.last_records, batch, stream.state_dict(), collector.state_dict()))
            assert max_in_flight is None or engine.most_in_flight <= max_in_flight // 2
            return steps

        first, *others = run_on_ranks(num_ranks, collect)
        for (records, batch, position, _), (seen, in_batch) in zip(first, wanted, strict=True):
            assert [(index, mean, decision == "kept") for index, mean, decision in records] == seen
            assert indices(batch) == [index for index in in_batch for _ in range(2)]
            assert batch.stats["num_prompts_sampled"] == len(seen)
            assert position == {"num_taken": seen[-1][0] + 1}
        for other in others:
            assert [(step[0], step[1].stats, *step[2:]) for step in other] == [
                (step[0], step[1].stats, *step[2:]) for step in first
            ]


def test_an_engine_that_samples_in_batches_gets_prompts_only_when_all_verdicts_are_known():
    kinds = [MIXED, HARD, HARD]
    engine = ScriptedEngine(
        lambda index: kinds[index % 3], finish_next=lambda numbers: numbers[:1], is_batched=True
    )
    verifier = RolloutVerifier(LateVerifier(0), WordTokenizer())
    submitted = []
    for _ in range(2):
        make_collector(engine, verifier=verifier).collect(0)
        submitted.append(engine.submitted)
    # 4 prompts; 2 of them kept at a smoothed rate of (2 + 1) / (4 + 1) leave 2 to find, and so on.
    assert submitted == [[4, 4, 3]] * 2


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (HARD, ["too hard", "SFT", "from 0.0: 16, from 0.2: 0"]),
        (EASY, ["too easy", "harder prompts", "from 0.8: 16"]),
        (ERROR, ["verifier errors: 16", "reward.verifier"]),
    ],
)
@pytest.mark.parametrize("on_shortage", ["error", "partial"])
def test_a_step_without_kept_groups_is_explained(script, words, on_shortage):
    collector = make_collector(
        ScriptedEngine(lambda index: script), max_prompts_factor=3.0, on_shortage=on_shortage
    )
    if on_shortage == "error":
        with pytest.raises(RuntimeError, match="step 6 kept 0 of the 4 prompts") as caught:
            collector.collect(6)
        text = str(caught.value)
    else:
        nothing = collector.collect(6)
        assert isinstance(nothing, NoBatch)
        assert nothing.stats["num_groups_kept"] == 0 and nothing.stats["num_prompts_sampled"] == 12
        assert nothing.stats["policy_version"] == 5 and math.isnan(nothing.stats["accuracy_batch"])
        text = nothing.reason
    sampled = 4 + 8
    assert f"{sampled} prompts sampled: " in text
    assert all(word.replace("16", str(sampled)) in text for word in words)


def test_a_shortage_is_an_error_if_configured_even_when_some_groups_are_kept():
    engine = ScriptedEngine(lambda index: MIXED if index < 3 else HARD)
    with pytest.raises(RuntimeError, match=r"kept 3 of the 4.*kept 3, .*filter.on_shortage = 'partial'"):
        make_collector(engine, on_shortage="error", max_prompts_factor=3.0).collect(0)


def test_a_partial_batch_stays_divisible():
    engine = ScriptedEngine(lambda index: MIXED if index < 3 else HARD)
    batch = make_collector(engine, max_prompts_factor=1.0, rows_multiple_of=4).collect(0)
    assert indices(batch) == [0, 0, 1, 1]
    assert batch.stats["num_groups_trimmed"] == 1
    nothing = make_collector(engine, max_prompts_factor=1.0, rows_multiple_of=8).collect(0)
    assert isinstance(nothing, NoBatch) and "positive multiple of 4 prompts" in nothing.reason
    assert nothing.stats["num_groups_trimmed"] == 3
    stuck = make_collector(engine, max_prompts_factor=1.0, rows_multiple_of=8, max_short_steps=1)
    with pytest.raises(RuntimeError, match="kept less than"):
        stuck.collect(0)
    with pytest.raises(ValueError, match=r"4 \* 2 responses are not a multiple of 3"):
        make_collector(engine, rows_multiple_of=3)


def test_a_disabled_filter_drops_only_verifier_errors():
    kinds = [EASY, ERROR, HARD, MIXED]
    batch = make_collector(ScriptedEngine(lambda index: kinds[index % 4]), enabled=False).collect(0)
    assert indices(batch) == [0, 0, 2, 2, 3, 3, 4, 4]


def test_a_prompt_sampled_twice_has_two_groups():
    stream = CountingStream()
    stream.next = lambda num_prompts: CountingStream().next(1) * num_prompts
    batch = make_collector(ScriptedEngine(lambda index: MIXED), PromptQueue(stream)).collect(0)
    assert batch.group_ids_B.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_wrong_results_of_the_engine_are_reported(monkeypatch):
    mixed = ScriptedEngine(lambda index: MIXED, version=lambda sample: 5 + sample)
    with pytest.raises(RuntimeError, match=r"mixes policy versions \[5, 6\]"):
        make_collector(mixed).collect(0)
    whole = ScriptedStream.group
    monkeypatch.setattr(ScriptedStream, "group", lambda stream, prompt: whole(stream, prompt)[:1])
    with pytest.raises(RuntimeError, match="1 rollouts of a prompt instead of 2"):
        make_collector(ScriptedEngine(lambda index: MIXED)).collect(0)


def test_step_ids_are_padded_with_the_last_step():
    collector = make_collector(
        ScriptedEngine(lambda index: MIXED),
        step_segmenter=lambda ids: [3 * index for index in range(len(ids))],
    )
    assert collector.collect(0).step_ids_BT.tolist() == [[0, 0], [0, 3]] * 4


def test_each_turn_is_divided_into_steps_on_its_own():
    """A reply belongs to the step before it, and the segmenter never sees it."""
    given = []

    def segmenter(ids):
        given.append(tuple(ids))
        return [index // 2 for index in range(len(ids))]

    ids = tuple(range(10))
    turns = (Turn(3, 5), Turn(6, 6), Turn(8, 10))
    assert step_ids_of_response(segmenter, ids, turns) == [0, 0, 1, 1, 1, 2, 3, 3, 3, 3]
    assert given == [(0, 1, 2), (5,), (6, 7)]
    assert step_ids_of_response(segmenter, ids, ()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_the_number_of_prompts_ahead_follows_the_keep_rate_of_previous_steps_also_after_a_resume():
    kinds = [MIXED, EASY, HARD]

    def collector(stream):
        return make_collector(ScriptedEngine(lambda index: kinds[index % 3]), stream)

    first = collector(PromptQueue(CountingStream()))
    for step in range(2):
        first.collect(step)
    assert first._engine.submitted[0] > 4
    resumed_stream = PromptQueue(CountingStream())
    resumed_stream.load_state_dict(json.loads(json.dumps(first.prompts.state_dict())))
    resumed = collector(resumed_stream)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert indices(resumed.collect(2)) == indices(first.collect(2))
    assert resumed._engine.submitted == first._engine.submitted


def test_a_data_set_that_is_too_hard_stops_with_an_explanation():
    engine = ScriptedEngine(lambda index: MIXED if index % 40 == 0 else HARD)
    collector = make_collector(
        engine,
        prompts_per_step=20,
        max_prompts_factor=1.0,
        max_short_steps=3,
        short_fraction=0.2,
        on_shortage="partial",
    )
    for step in range(2):
        collector.collect(2 * step)  # Every second batch of prompts has a mixed group.
        collector.prompts.take(20)
    with pytest.raises(RuntimeError) as caught:
        collector.collect(2)
    text = str(caught.value)
    assert text.startswith(
        "steps 0 to 2 kept less than 20% of 20 prompts each. Of 60 prompts sampled, 0% were all"
    )
    for words in ("95% all wrong", "too hard for this policy", "SFT", "filter.max_short_steps = 0"):
        assert words in text


def test_a_full_step_resets_the_count_of_short_steps_and_zero_disables_the_check():
    kinds = {0: [MIXED, *[EASY] * 9], 1: [MIXED] * 10}
    for limit, order in ((2, [0, 1, 0, 1, 0]), (0, [0] * 5)):
        script = [kind for number in order for kind in kinds[number]]
        collector = make_collector(
            ScriptedEngine(lambda index, script=script: script[index]),
            prompts_per_step=10,
            max_prompts_factor=1.0,
            short_fraction=0.3,
            max_short_steps=limit,
        )
        for step in range(5):
            collector.collect(step)
    easy = make_collector(
        ScriptedEngine(lambda index: [MIXED, *[EASY] * 9][index % 10]),
        prompts_per_step=10,
        max_prompts_factor=1.0,
        short_fraction=0.3,
        max_short_steps=2,
    )
    easy.collect(0)
    with pytest.raises(RuntimeError, match=r"90% were all right .* too easy for this policy"):
        easy.collect(1)


def cut_second(index, sample):
    return FinishReason.LENGTH if sample == 1 else FinishReason.STOP


def test_overlong_responses_are_kept_masked_or_penalised():
    responses = [[GOOD], [3, 3, 3, 3, 3, 3, BAD]]
    engine = ScriptedEngine(lambda index: responses, finish=cut_second)
    kept = make_collector(engine).collect(0)
    assert kept.is_trained_B is None and kept.outcome_penalties_B is None
    masked = make_collector(engine, overlong="mask").collect(0)
    assert masked.is_trained_B.tolist() == [True, False] * 4
    assert masked.outcome_rewards_B.tolist() == [1, 0] * 4
    assert masked.stats["num_masked"] == 4
    # The limit is 8 tokens and the buffer 4: a response of 7 tokens has used 3/4 of the buffer.
    penalised = make_collector(engine, overlong="penalize", overlong_buffer_tokens=4).collect(0)
    assert penalised.outcome_penalties_B.tolist() == [0.0, -0.75] * 4
    assert penalised.outcome_rewards_B.tolist() == [1, 0] * 4
    assert penalised.stats["mean_overlong_penalty"] == -0.375
    # The default buffer is a fifth of 8 tokens, rounded down to 1: only the limit itself is penalized.
    assert (
        make_collector(engine, overlong="penalize").collect(0).outcome_penalties_B.tolist() == [0.0, 0.0] * 4
    )


def test_every_sampled_group_is_recorded():
    collector = make_collector(ScriptedEngine(lambda index: [MIXED, EASY][index % 2]), max_prompts_factor=1.0)
    collector.collect(0)
    assert list(collector.last_records) == [
        (0, 0.5, "kept"),
        (1, 1.0, "dropped_too_easy"),
        (2, 0.5, "kept"),
        (3, 1.0, "dropped_too_easy"),
    ]


def verify_parity(samples):
    """Verify a task that a random model solves half of the time: the first word is even."""
    texts = [sample.response_text for sample in samples]
    return [FixedOutcome(float(int(text.split()[0][1:]) % 2 == 0) if text else math.nan) for text in texts]


def collect_with_real_model(folder, ranks, stream):
    with BUILDING:
        engine = LocalEngine(
            folder, device=torch.device("cpu"), dtype=torch.float32, seed=0, max_batch_size=8, ranks=ranks
        )
    engine.load_from_hf(folder, policy_version=1)
    vocabulary = {f"w{token}": token for token in range(300)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, "w0")), eos_token="w299"
    )
    collector = Collector(
        engine,
        stream,
        RolloutVerifier(verify_parity, tokenizer, ranks),
        SamplingParams(6, stop_token_ids=(299, 250, 251)),
        FilterConfig(),
        BatchSize(6, 4),
    )
    return [collector.collect(step) for step in range(2)]


def test_real_model_and_tokenizer_on_one_and_two_ranks(tmp_path):
    save_tiny_model("qwen2", tmp_path)
    alone = collect_with_real_model(tmp_path, Ranks(), PromptQueue(CountingStream()))
    by_rank = run_on_ranks(
        2, lambda ranks: collect_with_real_model(tmp_path, ranks, PromptQueue(CountingStream()))
    )
    for batches in by_rank:
        for batch, wanted in zip(batches, alone, strict=True):
            assert [each.response_ids for each in batch.rollouts] == [
                each.response_ids for each in wanted.rollouts
            ]
            assert torch.equal(batch.outcome_rewards_B, wanted.outcome_rewards_B)
            torch.testing.assert_close(
                batch.rollout_logprobs_BT, wanted.rollout_logprobs_BT, atol=1e-5, rtol=0
            )
            assert batch.stats == wanted.stats
    for batch in alone:
        accuracies = batch.outcome_rewards_B.view(6, 4).mean(1)
        assert ((accuracies >= 0.2) & (accuracies <= 0.8)).all()
        assert batch.rollout_logprobs_BT[~batch.response_mask_BT].eq(0).all()
        assert batch.rollout_logprobs_BT[batch.response_mask_BT].lt(0).all()
        for rollout in batch.rollouts:
            assert rollout.outcome_reward == (rollout.response_ids[0] % 2 == 0)
