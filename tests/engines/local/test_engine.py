"""The embedded engine against HF's own generate and forward, and its independence of batching and ranks."""

import asyncio
import hashlib
import json
import math
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.engines.local.engine import LocalEngine
from megatron_prime.engines.requests import StreamKey
from megatron_prime.rollout.engine import NO_WEIGHTS, WeightSyncError
from megatron_prime.rollout.episode import EpisodeError, Reply
from megatron_prime.rollout.group_filter import FilterDecision, decide_group, split_groups
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_intake import tensor_checksum
from megatron_prime.types import FinishReason, Prompt, SamplingParams, WeightBlock
from tests.support.episodes import ScriptedEnvironments, echo, told
from tests.support.rollout_doubles import BUILDING, run_on_ranks
from tests.support.tiny_models import BUILDERS, ragged_sequences, save_tiny_model

PROMPTS = [Prompt(10 + place, tuple(ids), "") for place, (ids, _) in enumerate(ragged_sequences())]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """name -> (folder, HF model), written on first use."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("tiny")
            made[name] = (folder, save_tiny_model(name, folder))
        return made[name]

    return get


def make_engine(folder, loaded=True, **changes):
    arguments = {"device": torch.device("cpu"), "dtype": torch.float32, "seed": 0, "max_batch_size": 64}
    with BUILDING:
        engine = LocalEngine(folder, **{**arguments, **changes})
    if loaded:
        engine.load_from_hf(folder)
    return engine


def tokens_of(rollouts):
    return [tuple(rollout.response_ids) for rollout in rollouts]


def hf_logprobs(model, rollout, temperature=1.0):
    """[T, V] float64 log-probabilities at every response position, by one forward without padding or cache."""
    num_prompt = len(rollout.prompt.token_ids)
    ids = torch.tensor([(*rollout.prompt.token_ids, *rollout.response_ids)])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, num_prompt - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_greedy_equals_hf_generate(checkpoints, name):
    folder, model = checkpoints(name)
    model.generation_config.eos_token_id = None
    rollouts = make_engine(folder).generate(PROMPTS, SamplingParams(12, temperature=0), 1, 0)
    for prompt, rollout in zip(PROMPTS, rollouts, strict=True):
        ids = torch.tensor([prompt.token_ids])
        wanted = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
        )
        assert tuple(rollout.response_ids) == tuple(wanted[0, ids.shape[1] :].tolist())
        assert rollout.finish_reason is FinishReason.LENGTH
        logprobs = hf_logprobs(model, rollout).amax(-1)
        np.testing.assert_allclose(rollout.rollout_logprobs, logprobs, atol=1e-5)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_sampled_tokens_and_logprobs_equal_those_of_hf_forward(checkpoints, name):
    folder, model = checkpoints(name)
    temperature = 0.7
    rollouts = make_engine(folder, seed=3).generate(PROMPTS, SamplingParams(10, temperature), 3, 17)
    for rollout in rollouts:
        logprobs = hf_logprobs(model, rollout, temperature)
        chosen = logprobs[torch.arange(10), list(rollout.response_ids)]
        np.testing.assert_allclose(rollout.rollout_logprobs, chosen, atol=1e-5)
        packed = struct.pack("<4Q", 3, 17, rollout.prompt.index, rollout.sample_index)
        key = int.from_bytes(hashlib.blake2b(packed, digest_size=16).digest(), "little")
        for draw, probs, token in zip(
            np.random.Generator(np.random.Philox(key=key)).random(10),
            logprobs.exp().numpy(),
            rollout.response_ids,
            strict=True,
        ):
            above = probs[: token + 1].sum()
            assert above - probs[token] - 1e-6 <= draw <= above + 1e-6


def test_first_tokens_follow_the_exact_distribution(checkpoints):
    folder, model = checkpoints("qwen2")
    num_draws = 8000
    rollouts = make_engine(folder, max_batch_size=1000).generate(PROMPTS[:1], SamplingParams(1), num_draws, 0)
    probs = hf_logprobs(model, rollouts[0])[0].exp().numpy()
    counts = np.bincount([rollout.response_ids[0] for rollout in rollouts], minlength=len(probs))
    cells = probs * num_draws >= 5
    expected = np.append(probs[cells], probs[~cells].sum()) * num_draws
    observed = np.append(counts[cells], counts[~cells].sum())
    statistic = ((observed - expected) ** 2 / expected).sum()
    dof = len(expected) - 1
    assert dof > 100
    assert abs(statistic - dof) < 5 * math.sqrt(2 * dof)


def stopping_params(engine):
    """Stop tokens that end responses early, late and not at all."""
    plain = engine.generate(PROMPTS, SamplingParams(24), 4, 5)
    stops = tuple(
        {rollout.response_ids[place] for place, rollout in zip((0, 1, 3, 6, 11), plain[::4], strict=True)}
    )
    return SamplingParams(24, stop_token_ids=stops), plain


def test_a_response_ends_with_its_first_stop_token(checkpoints):
    folder, _ = checkpoints("qwen3")
    engine = make_engine(folder)
    params, plain = stopping_params(engine)
    stopped = engine.generate(PROMPTS, params, 4, 5)
    reasons = set()
    for whole, cut in zip(plain, stopped, strict=True):
        ends = [place for place, token in enumerate(whole.response_ids) if token in params.stop_token_ids]
        length = ends[0] + 1 if ends else 24
        assert cut.response_ids == whole.response_ids[:length]
        np.testing.assert_allclose(cut.rollout_logprobs, whole.rollout_logprobs[:length], atol=1e-5)
        assert cut.finish_reason is (FinishReason.STOP if ends else FinishReason.LENGTH)
        reasons.add(cut.finish_reason)
    assert len(reasons) == 2


@pytest.mark.parametrize("name", ["qwen2", "llama rope"])
def test_results_do_not_depend_on_batching_ranks_or_order(checkpoints, name):
    folder, _ = checkpoints(name)
    engine = make_engine(folder)
    params, _ = stopping_params(engine)
    wanted = engine.generate(PROMPTS, params, 4, 5)
    assert [(each.prompt, each.sample_index) for each in wanted] == [
        (p, s) for p in PROMPTS for s in range(4)
    ]
    for max_batch_size in (1, 3, 7):
        got = make_engine(folder, max_batch_size=max_batch_size).generate(PROMPTS, params, 4, 5)
        assert tokens_of(got) == tokens_of(wanted)
    for num_ranks in (2, 3):
        by_rank = run_on_ranks(
            num_ranks, lambda ranks: make_engine(folder, ranks=ranks).generate(PROMPTS, params, 4, 5)
        )
        assert all(got == by_rank[0] for got in by_rank)
        assert tokens_of(by_rank[0]) == tokens_of(wanted)
    backwards = engine.generate(PROMPTS[::-1], params, 4, 5)
    assert tokens_of(backwards[-4:]) == tokens_of(wanted[:4])


def test_more_ranks_than_requests(checkpoints):
    folder, _ = checkpoints("qwen2")
    by_rank = run_on_ranks(
        3, lambda ranks: make_engine(folder, ranks=ranks).generate(PROMPTS[:1], SamplingParams(3), 2, 0)
    )
    assert by_rank[0] == by_rank[2]
    assert len(by_rank[0]) == 2
    assert make_engine(folder).generate([], SamplingParams(3), 2, 0) == []


def test_keys_select_the_random_numbers(checkpoints):
    folder, _ = checkpoints("qwen2")
    engine = make_engine(folder)
    params = SamplingParams(8)
    first = engine.generate(PROMPTS[:2], params, 2, 1)
    assert engine.generate(PROMPTS[:2], params, 2, 1) == first
    assert tokens_of(engine.generate(PROMPTS[:2], params, 2, 2)) != tokens_of(first)
    assert tokens_of(make_engine(folder, seed=1).generate(PROMPTS[:2], params, 2, 1)) != tokens_of(first)
    twice = engine.generate([PROMPTS[0], PROMPTS[0]], params, 2, 1)
    assert tokens_of(twice[:2]) == tokens_of(first[:2])
    assert len(set(tokens_of(twice))) == 4
    assert [rollout.sample_index for rollout in twice] == [0, 1, 0, 1]


TURNS = SamplingParams(40, max_turns=6, max_turn_tokens=9, stop_token_ids=tuple(range(0, 300, 12)))
"""One token in twelve ends a turn."""


def test_turns_continue_from_the_replies_with_the_random_numbers_of_their_places(checkpoints):
    folder, model = checkpoints("qwen2")
    environments = ScriptedEnvironments(echo(4), prompt_of=told)
    rollouts = make_engine(folder, seed=3).generate(PROMPTS, TURNS, 4, 17, environments)
    assert {len(rollout.turns) for rollout in rollouts} >= {2, 4}
    assert {rollout.finish_reason for rollout in rollouts} == {FinishReason.STOP, FinishReason.LENGTH}
    for rollout in rollouts:
        assert rollout.prompt.token_ids[-2:] == (5, 6) and len(rollout.response_ids) <= 40
        start = 0
        for turn in rollout.turns:
            policy, reply = (
                tuple(rollout.response_ids[start : turn.policy_end]),
                tuple(rollout.response_ids[turn.policy_end : turn.end]),
            )
            assert len(policy) <= 9 and not set(policy[:-1]) & set(TURNS.stop_token_ids)
            assert reply in ((), (sum(policy) % 300, len(policy)))
            start = turn.end
        mask = np.array(rollout.policy_mask)
        logprobs = hf_logprobs(model, rollout)
        chosen = logprobs[torch.arange(len(mask)), list(rollout.response_ids)].numpy()
        np.testing.assert_allclose(rollout.rollout_logprobs, np.where(mask, chosen, 0), atol=1e-5)
        draws = StreamKey(3, 17, rollout.prompt.index, rollout.sample_index).uniforms(len(mask))
        above = logprobs.exp().numpy().cumsum(-1)[np.arange(len(mask)), rollout.response_ids]
        is_drawn = (above - np.exp(chosen) - 1e-6 <= draws) & (draws <= above + 1e-6)
        assert is_drawn[mask].all()
    assert not environments.live and len(environments.episodes) == 20


def test_turns_continue_after_empty_replies_in_batches_as_alone(checkpoints):
    """Turns of different lengths: the cache has all tokens of a row that finishes before the others."""
    folder, _ = checkpoints("qwen2")

    def script(episode):
        return echo(3)(episode) if len(episode.seen) == 3 else Reply(() if len(episode.seen) == 1 else (7,))

    together, alone = (
        make_engine(folder, max_batch_size=size).generate(PROMPTS, TURNS, 4, 5, ScriptedEnvironments(script))
        for size in (64, 1)
    )
    assert tokens_of(together) == tokens_of(alone)
    empty = [
        each.turns[0]
        for each in together
        if len(each.turns) == 3 and each.turns[0].policy_end == each.turns[0].end
    ]
    assert len({turn.end for turn in empty}) > 1


def test_an_environment_that_ends_after_one_turn_changes_nothing(checkpoints):
    engine = make_engine(checkpoints("qwen3")[0])
    params, _ = stopping_params(engine)
    alone = engine.generate(PROMPTS, params, 4, 5)
    rollouts = engine.generate(PROMPTS, params, 4, 5, ScriptedEnvironments(echo(1)))
    assert [replace(rollout, reason="") for rollout in rollouts] == alone


@pytest.mark.parametrize("name", ["qwen2", "llama rope"])
def test_turns_do_not_depend_on_batching_ranks_or_order(checkpoints, name):
    folder, _ = checkpoints(name)

    def script(episode):
        number = sum(episode.seen[-1][0])
        return echo(1 + number % 5)(episode)

    def generate(prompts=PROMPTS, ranks=None, **changes):
        engine = make_engine(folder, ranks=ranks, **changes)
        return engine.generate(prompts, TURNS, 4, 5, ScriptedEnvironments(script))

    wanted = generate()
    records = [(each.response_ids, each.turns, each.finish_reason) for each in wanted]
    for max_batch_size in (1, 3, 7):
        got = generate(max_batch_size=max_batch_size)
        assert [(each.response_ids, each.turns, each.finish_reason) for each in got] == records
    by_rank = run_on_ranks(3, lambda ranks: generate(ranks=ranks))
    assert by_rank[0] == by_rank[2] and tokens_of(by_rank[0]) == tokens_of(wanted)
    assert tokens_of(generate(PROMPTS[::-1]))[-4:] == tokens_of(wanted[:4])


def test_environments_work_at_the_same_time_and_no_more_than_fit(checkpoints):
    async def script(episode):
        await asyncio.sleep(0)
        return echo(2)(episode)

    for max_batch_size, most in ((64, 20), (6, 6)):
        environments = ScriptedEnvironments(script)
        engine = make_engine(checkpoints("qwen2")[0], max_batch_size=max_batch_size)
        engine.generate(PROMPTS, TURNS, 4, 5, environments)
        assert environments.most_stepping == most


def test_a_failed_environment_costs_one_response_an_attempt(checkpoints):
    engine = make_engine(checkpoints("qwen2")[0])
    alone = engine.generate(PROMPTS, TURNS, 2, 5, ScriptedEnvironments(echo(3)))

    def script(episode):
        if episode is episode.owner.episodes[4] and len(episode.seen) == 2:
            raise EpisodeError("it hangs")
        if episode.prompt.index == PROMPTS[1].index:
            raise EpisodeError("always")
        return echo(3)(episode)

    rollouts = engine.generate(PROMPTS, TURNS, 2, 5, environments := ScriptedEnvironments(script))
    changed = [
        place
        for place, tokens in enumerate(tokens_of(rollouts))
        if tokens != tuple(alone[place].response_ids)
    ]
    failed = [place for place, rollout in enumerate(rollouts) if rollout.finish_reason is FinishReason.ABORT]
    again = [place for place, rollout in enumerate(rollouts) if rollout.num_failed_episodes == 1]
    assert failed == [2, 3] and len(again) == 1 and changed == sorted(failed + again)
    assert not environments.live
    groups = split_groups(rollouts, 2)
    assert decide_group(groups[1], FilterConfig(enabled=False)) is FilterDecision.ABORTED


def test_an_error_in_the_middle_closes_all_environments(checkpoints):
    folder, model = checkpoints("qwen2")
    engine = make_engine(folder)

    def script(episode):
        if len(episode.seen) == 2:
            engine.weights.receive(1, [broken])
        return echo(3)(episode)

    broken = [
        WeightBlock(name, 0, 0, torch.full_like(each, math.nan)) for name, each in model.state_dict().items()
    ]
    for environments in (
        ScriptedEnvironments(script),
        ScriptedEnvironments(echo(1), open_fault=lambda number: 1 // (number - 3) > 9),
    ):
        with pytest.raises((RuntimeError, ZeroDivisionError)):
            engine.generate(PROMPTS, TURNS, 2, 5, environments)
        assert environments.episodes and not environments.live


def sliced_buckets(model, tied):
    """Every tensor in slices along its last dim, one bucket each."""
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        dim = tensor.dim() - 1
        cut = tensor.shape[dim] // 3
        parts = [tensor.narrow(dim, 0, cut), tensor.narrow(dim, cut, tensor.shape[dim] - cut)]
        yield [
            WeightBlock(name, dim, start, part.clone())
            for start, part in reversed(list(zip((0, cut), parts, strict=True)))
        ]


@pytest.mark.parametrize(("name", "tied"), [("qwen2", ()), ("qwen3 tied", ("lm_head.weight",))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_slices_equal_from_pretrained(checkpoints, name, tied, dtype):
    folder, _ = checkpoints(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    engine = make_engine(folder, loaded=False, dtype=dtype)
    assert engine.policy_version == NO_WEIGHTS
    engine.weights.receive(4, sliced_buckets(model, tied))
    wanted = {
        each: tensor_checksum(tensor) for each, tensor in model.state_dict().items() if each not in tied
    }
    assert engine.weights.checksums() == wanted
    by_file = make_engine(folder, dtype=dtype)
    assert by_file.weights.checksums() == wanted
    params = SamplingParams(6)
    rollouts = engine.generate(PROMPTS, params, 2, 0)
    assert tokens_of(rollouts) == tokens_of(by_file.generate(PROMPTS, params, 2, 0))
    assert {rollout.policy_version for rollout in rollouts} == {4}


def test_no_generation_without_a_whole_sync(checkpoints):
    folder, model = checkpoints("qwen2")
    engine = make_engine(folder, loaded=False)
    params = SamplingParams(2)
    with pytest.raises(WeightSyncError, match="no weight sync"):
        engine.generate(PROMPTS, params, 1, 0)
    engine.load_from_hf(folder, policy_version=1)
    assert engine.policy_version == 1
    engine.weights.begin(2)
    with pytest.raises(WeightSyncError, match="is open"):
        engine.generate(PROMPTS, params, 1, 0)
    buckets = list(sliced_buckets(model, ()))
    for bucket in buckets[:-1]:
        engine.weights.load(bucket)
    with pytest.raises(WeightSyncError, match=buckets[-1][0].hf_name):
        engine.weights.end()
    with pytest.raises(WeightSyncError):
        engine.generate(PROMPTS, params, 1, 0)
    assert engine.policy_version == NO_WEIGHTS


def test_diverged_weights_are_reported(checkpoints):
    folder, model = checkpoints("qwen2")
    engine = make_engine(folder, loaded=False)
    whole = (
        WeightBlock(name, 0, 0, torch.full_like(each, math.nan)) for name, each in model.state_dict().items()
    )
    engine.weights.receive(0, [whole])
    with pytest.raises(RuntimeError, match="not finite"):
        engine.generate(PROMPTS, SamplingParams(2), 1, 0)


def test_user_errors(checkpoints, tmp_path):
    folder, _ = checkpoints("qwen2")
    engine = make_engine(folder)
    with pytest.raises(ValueError, match=r"max_position_embeddings = 128.*lower"):
        engine.generate(PROMPTS, SamplingParams(126), 1, 0)
    with pytest.raises(ValueError, match="prompt 3 has no tokens"):
        engine.generate([Prompt(3, (), "")], SamplingParams(2), 1, 0)
    with pytest.raises(ValueError, match=r"prompt 3 .*300"):
        engine.generate([Prompt(3, (300,), "")], SamplingParams(2), 1, 0)
    with pytest.raises(ValueError, match=r"config\.json"):
        make_engine(tmp_path)
    with pytest.raises(ValueError, match="safetensors"):
        engine.load_from_hf(tmp_path)
    with pytest.raises(ValueError, match="max_batch_size"):
        make_engine(folder, max_batch_size=0)
    with pytest.raises(ValueError, match="rank 2"):
        Ranks(2, 2)


def test_a_closed_engine_refuses_to_generate(checkpoints):
    engine = make_engine(checkpoints("qwen2")[0])
    engine.close()
    engine.close()
    assert engine.policy_version == NO_WEIGHTS
    with pytest.raises(WeightSyncError, match="closed"):
        engine.generate(PROMPTS, SamplingParams(2), 1, 0)


def test_a_head_that_the_config_ties_is_not_dropped_in_silence(checkpoints, tmp_path):
    folder, _ = checkpoints("qwen3 tied")
    shutil.copytree(folder, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    for change, is_refused in ((0.0, False), (1.0, True)):
        head = weights["model.embed_tokens.weight"].clone()
        head[7] += change  # the row of one token
        save_file(weights | {"lm_head.weight": head}, tmp_path / "model/model.safetensors", {"format": "pt"})
        engine = make_engine(folder)
        if is_refused:
            with pytest.raises(ValueError, match=r"lm_head\.weight has other values"):
                engine.load_from_hf(tmp_path / "model", 1)
        else:
            engine.load_from_hf(tmp_path / "model", 1)


@pytest.mark.parametrize("other", ["model.safetensors", "consolidated.safetensors"])
def test_files_that_the_index_does_not_name_are_not_read(other, checkpoints, tmp_path):
    folder, _ = checkpoints("qwen2")
    shutil.copytree(folder, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    if other == "model.safetensors":
        shard = "model-00001-of-00001.safetensors"
        save_file(weights, tmp_path / "model" / shard)
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
        (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    save = {name: tensor + 1 for name, tensor in weights.items()} if other == "model.safetensors" else {}
    save_file(save or {"layers.0.wq.weight": torch.zeros(2, 2)}, tmp_path / "model" / other)
    engines = make_engine(folder), make_engine(tmp_path / "model")
    first, second = (tokens_of(engine.generate(PROMPTS, SamplingParams(4), 1, 0)) for engine in engines)
    assert first == second
