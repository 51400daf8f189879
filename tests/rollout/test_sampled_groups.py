import pytest

from megatron_prime.rollout.sampled_groups import SampledGroup, chosen_groups


def groups(pattern):
    """Return a group per letter: k is in the batch, anything else is not."""
    return [
        SampledGroup([index], letter, index if letter == "k" else None)
        for index, letter in enumerate(pattern)
    ]


@pytest.mark.parametrize(
    ("pattern", "most", "chosen"),
    [
        ("k" * 8, 4, "kkkk"),
        ("d" * 8, 4, "dddd"),
        ("kd" * 8, 8, "kdkkdkkk"),
        ("kkkkkkkd", 8, "kkkkkkkd"),
        ("kddddddd", 4, "kddd"),
        ("kkkkkkkkd", 4, "kkkd"),
        ("kd", 1, "k"),
        ("kd", 0, ""),
        ("", 8, ""),
    ],
)
def test_three_quarters_are_of_the_batch_if_there_are_enough(pattern, most, chosen):
    taken = chosen_groups(groups(pattern), most)
    assert sorted(group.verdict for group in taken) == sorted(chosen)
    assert taken == [group for group in groups(pattern) if group in taken], "in the order of sampling"


def test_groups_are_taken_at_equal_distances():
    assert [group.batch_index for group in chosen_groups(groups("k" * 12), 4)] == [0, 3, 6, 9]
