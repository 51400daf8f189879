"""A response is begun again where its environment fails, and its environment is always closed."""

import asyncio
import math

import pytest

from megatron_prime.engines.conversation import SampledTurn
from megatron_prime.engines.dialogue import MAX_EPISODES, Dialogue, DialogueSettings, close_all
from megatron_prime.engines.requests import ModelLimits, StreamKey
from megatron_prime.rollout.episode import EpisodeError, Reply
from megatron_prime.types import FinishReason, Prompt, SamplingParams, Turn
from tests.support.episodes import ScriptedEnvironments, echo, told

PROMPT = Prompt(4, (7, 8), "9")
KEY = StreamKey(1, 2, 4, 3)
PARAMS = SamplingParams(40, max_turns=8)


def dialogue_with(environments, limits=ModelLimits(300, 100)):  # noqa: B008
    return Dialogue(PROMPT, 3, KEY, DialogueSettings(PARAMS, limits, environments))


async def speak(dialogue, reason=FinishReason.STOP):
    """Take turns of one token, which counts the turns, to the end."""
    await dialogue.begin()
    count = 0
    while not dialogue.is_over:
        count += 1
        dialogue.add_turn(SampledTurn((count,), (-1.0,), reason, ((1, 0, 1),)))
        await dialogue.reply()
    return count


def run(environments, **options):
    dialogue = dialogue_with(environments, **options)
    count = asyncio.run(speak(dialogue))
    return dialogue.rollout(policy_version=1), count


def test_without_environments_the_first_turn_is_the_response():
    rollout, count = run(None)
    assert (count, tuple(rollout.response_ids), rollout.turns, rollout.num_failed_episodes) == (
        1,
        (1,),
        (),
        0,
    )


def test_turns_go_to_the_environment_until_it_ends():
    environments = ScriptedEnvironments(echo(3, outcome=0.5), prompt_of=told)
    rollout, count = run(environments)
    assert count == 3 and rollout.prompt.token_ids == (7, 8, 5, 6)
    assert tuple(rollout.response_ids) == (1, 1, 1, 2, 2, 1, 3)
    assert rollout.turns == (Turn(1, 3, 0.25), Turn(4, 6, 0.25), Turn(7, 7))
    assert (rollout.outcome_reward, rollout.reason, rollout.environment_s > 0) == (0.5, "the end", True)
    [episode] = environments.episodes
    assert [token_ids for token_ids, _ in episode.seen] == [(1,), (2,), (3,)]
    assert episode.num_closed == 1, "as soon as the response is over"


@pytest.mark.parametrize(
    ("reason", "seen"), [(FinishReason.LENGTH, [FinishReason.LENGTH]), (FinishReason.ABORT, [])]
)
def test_a_turn_that_was_cut_is_judged_and_one_that_the_engine_gave_up_is_not(reason, seen):
    environments = ScriptedEnvironments(echo(3))
    dialogue = dialogue_with(environments)
    asyncio.run(speak(dialogue, reason))
    assert dialogue.rollout(1).finish_reason is reason
    assert [each for _, each in environments.episodes[0].seen] == seen
    assert not environments.live


def failing(num_failures, at_turn):
    """A script of environments of which the first fail at a turn."""

    def script(episode):
        number = episode.owner.episodes.index(episode)
        if number < num_failures and len(episode.seen) == at_turn:
            raise EpisodeError(f"failure {number}")
        return echo(2)(episode)

    return script


@pytest.mark.parametrize("at_turn", [1, 2])
@pytest.mark.parametrize("num_failures", [1, MAX_EPISODES - 1])
def test_a_failed_environment_costs_an_attempt_with_other_random_numbers(at_turn, num_failures):
    environments = ScriptedEnvironments(failing(num_failures, at_turn))
    dialogue = dialogue_with(environments)
    asyncio.run(speak(dialogue))
    rollout = dialogue.rollout(1)
    assert rollout.num_failed_episodes == num_failures
    assert (rollout.finish_reason, len(rollout.turns)) == (FinishReason.STOP, 2)
    assert dialogue.key == StreamKey(1, 2, 4, 3 + (num_failures << 32))
    assert not environments.live and all(each.num_closed == 1 for each in environments.episodes)


@pytest.mark.parametrize(
    ("environments", "response_ids", "reason"),
    [
        (ScriptedEnvironments(failing(9, at_turn=2)), (7, 7, 1, 8), "failure 3"),
        (ScriptedEnvironments(echo(1), open_fault=lambda _: True), (8,), "the environment does not start"),
        (
            ScriptedEnvironments(echo(1), prompt_of=lambda _: Prompt(4, (1,) * 61, "9")),
            (8,),
            "the environment's prompt 4 has 61 tokens; with max_response_tokens = 40 that exceeds",
        ),
        (
            ScriptedEnvironments(echo(1), prompt_of=lambda _: Prompt(4, (300,), "9")),
            (8,),
            "the environment's prompt 4 has tokens outside the model's vocabulary",
        ),
    ],
)
def test_after_too_many_failures_the_response_is_given_up(environments, response_ids, reason):
    rollout, _ = run(environments)
    assert rollout.num_failed_episodes == environments.num_opened == MAX_EPISODES
    assert (rollout.finish_reason, tuple(rollout.response_ids)) == (FinishReason.ABORT, response_ids)
    assert rollout.reason.startswith(reason)
    assert math.isnan(rollout.outcome_reward) and rollout.is_judged and not environments.live


def test_a_dialogue_that_starts_late_is_not_over():
    environments = ScriptedEnvironments(echo(1), open_fault=lambda number: number == 1)
    rollout, _ = run(environments)
    assert (rollout.num_failed_episodes, rollout.finish_reason) == (1, FinishReason.STOP)


def test_a_cancelled_dialogue_can_be_closed():
    environments = ScriptedEnvironments(lambda episode: asyncio.sleep(60))
    dialogue = dialogue_with(environments)

    async def scenario():
        task = asyncio.ensure_future(speak(dialogue))
        while not environments.num_stepping:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    assert environments.live
    close_all([dialogue, dialogue])
    assert not environments.live


def test_other_errors_of_an_environment_end_the_call():
    with pytest.raises(ZeroDivisionError):
        run(ScriptedEnvironments(lambda episode: Reply((1 // 0,))))
