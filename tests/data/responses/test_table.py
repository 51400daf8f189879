"""Groups of responses are read back as they were stored."""

from megatron_prime.data.responses.table import GroupTable, SavedResponse
from megatron_prime.types import Turn


def test_groups_come_back_as_rollouts():
    table = GroupTable()
    turns = (Turn(1, 2), Turn(3, 3))
    table.append([1, 2], [SavedResponse([3], 0.0), SavedResponse([4, 5, 6], 0.5, turns)])
    table.append([7], [SavedResponse([8, 9], 1.0)])
    assert len(table) == 2 and table.num_responses == 3
    first, second = table
    assert [rollout.response_ids for rollout in first] == [(3,), (4, 5, 6)]
    assert [rollout.turns for rollout in first] == [(), turns]
    assert [rollout.outcome_reward for rollout in first] == [0.0, 0.5]
    assert [rollout.sample_index for rollout in first] == [0, 1]
    assert {rollout.prompt.token_ids for rollout in first} == {(1, 2)}
    assert second[0].prompt.index == 1 and second[0].prompt.token_ids == table.prompt_ids(1) == (7,)
    assert second[0].rollout_logprobs == (0.0, 0.0)
    assert list(table.outcomes(0)) == [0.0, 0.5]
