import pytest

from megatron_prime.training.checkpoint.schedule import SaveSchedule


def saves(every, step_s: float, save_s: float, num_steps: int) -> list[int]:
    """Return the steps after which a run with steps and saves of these durations saves."""
    now, saved = 0.0, []
    schedule = SaveSchedule(every, clock=lambda: now)
    cost = 0.0
    for step in range(1, num_steps + 1):
        now += step_s
        if schedule.is_due(step, cost):
            saved.append(step)
            cost = save_s
            now += save_s
    return saved


@pytest.mark.parametrize(
    ("every", "step_s", "save_s", "expected"),
    [
        (0, 1.0, 1.0, []),
        (4, 1.0, 1.0, [4, 8, 12]),
        ("auto", 1.0, 0.1, [1]),
        ("auto", 10.0, 0.1, [1, 4, 7, 10]),
        ("auto", 100.0, 10.0, [1, 3, 5, 7, 9, 11]),
        ("auto", 600.0, 60.0, [1, 3, 5, 7, 9, 11]),
        ("auto", 1200.0, 600.0, [1, 4, 7, 10]),
        ("auto", 7200.0, 60.0, [*range(1, 13)]),
    ],
)
def test_saves_bound_both_their_cost_and_the_work_at_risk(every, step_s, save_s, expected):
    assert saves(every, step_s, save_s, 12) == expected


def test_all_ranks_save_when_one_finds_it_due():
    votes: list[bool] = []
    schedule = SaveSchedule("auto", agree=lambda flag: votes.append(flag) or True, clock=lambda: 0.0)
    assert [schedule.is_due(step, 0.0) for step in (1, 2)] == [True, True]
    assert votes == [True, False]
