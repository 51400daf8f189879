"""Compares shares with an exact count, resumes at every position, and checks epochs for repetitions."""

import json
from fractions import Fraction

import pytest

from megatron_prime.data.columns import ColumnTable
from megatron_prime.data.mixing import MixedOrder, Subset, make_stream
from megatron_prime.data.ordering import ResumableOrder

SETS = {
    "a": [f"a{n}" for n in range(11)],
    "b": [f"b{n}" for n in range(5)],
    "c": [f"c{n}" for n in range(300)],
}
WEIGHTS = {"a": 5.0, "b": 1.5, "c": 3.5}


def make(seed=1, weights=WEIGHTS, shuffle=True):
    return MixedOrder(SETS, weights, "print", seed, shuffle)


def test_every_prefix_meets_the_shares():
    taken = make().next(500)
    total = sum(Fraction(weight) for weight in WEIGHTS.values())
    for length in range(1, 501):
        for name, weight in WEIGHTS.items():
            count = sum(item[0] == name for item in taken[:length])
            assert abs(count - length * Fraction(weight) / total) < len(SETS) / 2


def test_each_set_is_visited_without_repetition():
    taken = make().next(400)
    for name, items in SETS.items():
        mine = [item for item in taken if item[0] == name]
        for start in range(0, len(mine) - len(items) + 1, len(items)):
            assert sorted(mine[start : start + len(items)]) == sorted(items)


def test_it_resumes_at_every_position():
    whole = make().next(60)
    for place in range(60):
        order = make()
        order.next(place)
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(order.state_dict())))
        assert resumed.next(60 - place) == whole[place:]


def test_the_epoch_is_the_minimum_over_the_sets():
    order = make()
    order.next(400)
    assert order.epoch == 0
    order.next(500)
    assert order.epoch == 1


def test_sets_of_one_size_are_shuffled_differently():
    order = MixedOrder({"a": range(50), "b": range(50)}, {"a": 1, "b": 1}, "p", 0, True)
    taken = order.next(100)
    assert sorted(taken[::2]) == sorted(taken[1::2]) == list(range(50))
    assert taken[::2] != taken[1::2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights": WEIGHTS | {"a": 6.0}}, "other data.weights"),
        ({"seed": 2}, "another seed"),
        ({"shuffle": False}, "another data.shuffle"),
    ],
)
def test_another_mixture_cannot_be_resumed(changes, reason):
    with pytest.raises(ValueError, match=reason):
        make(**changes).load_state_dict(make().state_dict())


def test_a_plain_order_and_a_mixture_do_not_resume_each_other():
    plain = ResumableOrder(SETS["a"], "print", 1, True)
    with pytest.raises(ValueError, match=r"other data\.weights"):
        make().load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="another data set"):
        plain.load_state_dict(make().state_dict())


class Numbers(ColumnTable[int]):
    """The row numbers themselves, with the given groups."""

    def __init__(self, groups):
        super().__init__()
        for group in groups:
            self.groups.append(group)

    def _record(self, row):
        return row


def test_make_stream_splits_rows_by_group():
    items = list(range(10))
    plain = make_stream(Numbers([""] * 10), "p", 0, False, {})
    assert plain.next(10) == items
    mixed = make_stream(Numbers(["even", "odd"] * 5), "p", 0, False, {"odd": 1, "even": 1})
    assert sorted(mixed.next(10)) == items
    with pytest.raises(ValueError, match="names none, but no row"):
        make_stream(Numbers(["some"] * 10), "p", 0, False, {"some": 1, "none": 1})
    assert list(Subset("abcdef", [4, 1])) == ["e", "b"]
