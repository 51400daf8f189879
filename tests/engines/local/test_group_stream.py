"""Groups come as they finish, equal to those of one call, however their prompts are submitted."""

import pytest

from megatron_prime.types import Prompt, SamplingParams
from tests.engines.local.test_engine import PROMPTS, make_engine, tokens_of
from tests.support.episodes import ScriptedEnvironments, echo
from tests.support.rollout_doubles import run_on_ranks
from tests.support.tiny_models import save_tiny_model

PARAMS = SamplingParams(6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model("qwen2", folder)
    return folder


def stream_in_parts(engine, parts, environments=None):
    """Sample each part once the one before it has finished. Returns the groups, and the numbers of each look."""
    groups, looks = {}, []
    with engine.stream(PARAMS, 3, 7, environments) as stream:
        assert stream.is_batched
        for part in parts:
            stream.submit(part)
            while stream.num_in_flight:
                finished = stream.finished(0.0)
                looks.append([number for number, _ in finished])
                groups |= dict(finished)
    return [rollout for number in sorted(groups) for rollout in groups[number]], looks


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_parts_give_the_groups_of_one_call_also_for_a_prompt_that_occurs_again(folder, num_ranks):
    prompts = [*PROMPTS, PROMPTS[0]]
    expected = make_engine(folder).generate(prompts, PARAMS, 3, 7)
    parts = [prompts[:2], prompts[2:3], prompts[3:]]

    def run(ranks):
        return stream_in_parts(make_engine(folder, ranks=ranks, max_batch_size=4), parts)

    results = run_on_ranks(num_ranks, run)
    for rollouts, looks in results:
        assert tokens_of(rollouts) == tokens_of(expected)
        assert [(each.prompt, each.sample_index) for each in rollouts] == [
            (each.prompt, each.sample_index) for each in expected
        ]
        assert sorted(number for numbers in looks for number in numbers) == list(range(len(prompts)))
        assert all(looks) and looks == results[0][1], "each look has a group, the same on every rank"


def test_a_look_takes_one_batch_and_leaving_ends_the_rest(folder):
    engine, environments = make_engine(folder, max_batch_size=3), ScriptedEnvironments(echo(1))
    with engine.stream(PARAMS, 3, 7, environments) as stream:
        stream.submit(PROMPTS[:3])
        assert len(stream.finished(0.0)) == 1
        assert (stream.num_in_flight, engine._worker.pending) == (2, 6)
    assert not environments.live and engine._worker.pending == engine._worker.running == 0


def test_prompts_are_checked_before_any_is_sampled(folder):
    with make_engine(folder).stream(PARAMS, 3, 7) as stream:
        with pytest.raises(ValueError, match="has no tokens"):
            stream.submit([PROMPTS[0], Prompt(9, (), "")])
        assert stream.num_in_flight == 0
