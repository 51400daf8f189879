from megatron_prime.observability.rollout_log.turns import TURN_COLUMNS, logged_turns
from megatron_prime.types import Turn
from tests.support.logged_rollouts import logged_response


def test_turns_begin_with_the_tokens_of_the_policy():
    values = ([True, False, True, True, False], [2, 5], [0.5, 0.0])
    row = logged_response(num_tokens=5, **dict(zip(TURN_COLUMNS, values, strict=True)))
    assert logged_turns(row) == (Turn(1, 2, 0.5), Turn(4, 5, 0.0))


def test_a_response_without_an_environment_has_none():
    assert logged_turns(logged_response(turn_ends=None)) == ()
