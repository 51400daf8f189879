"""Shares against an exact count, resume at every place, and no repetition inside a set's epoch."""

import json
from fractions import Fraction

import pytest

from megatron_prime.data.mixing import MixedOrder, Subset, make_order
from megatron_prime.data.ordering import ResumableOrder

SETS = {
    "a": [f"a{n}" for n in range(11)],
    "b": [f"b{n}" for n in range(5)],
    "c": [f"c{n}" for n in range(300)],
}
WEIGHTS = {"a": 5.0, "b": 1.5, "c": 3.5}


def make(seed=1, weights=WEIGHTS, shuffle=True):
    return MixedOrder(SETS, weights, "print", seed, shuffle)


def test_every_prefix_has_its_shares():
    taken = make().next(500)
    total = sum(Fraction(weight) for weight in WEIGHTS.values())
    for length in range(1, 501):
        for name, weight in WEIGHTS.items():
            count = sum(item[0] == name for item in taken[:length])
            assert abs(count - length * Fraction(weight) / total) < len(SETS) / 2


def test_each_set_is_gone_through_without_repetition():
    taken = make().next(400)
    for name, items in SETS.items():
        mine = [item for item in taken if item[0] == name]
        for start in range(0, len(mine) - len(items) + 1, len(items)):
            assert sorted(mine[start : start + len(items)]) == sorted(items)


def test_it_resumes_at_every_place():
    whole = make().next(60)
    for place in range(60):
        order = make()
        order.next(place)
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(order.state_dict())))
        assert resumed.next(60 - place) == whole[place:]


def test_the_epoch_is_that_of_the_set_with_the_fewest():
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
def test_another_mixture_is_not_resumed(changes, reason):
    with pytest.raises(ValueError, match=reason):
        make(**changes).load_state_dict(make().state_dict())


def test_a_plain_order_s_position_is_no_mixture_s_and_the_other_way_round():
    plain = ResumableOrder(SETS["a"], "print", 1, True)
    with pytest.raises(ValueError, match=r"other data\.weights"):
        make().load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="another data set"):
        plain.load_state_dict(make().state_dict())


def test_make_order_parts_items_by_group():
    items = list(range(10))
    plain = make_order(items, lambda place: "", {}, "p", 0, False)
    assert plain.next(10) == items
    mixed = make_order(
        items, lambda place: "odd" if place % 2 else "even", {"odd": 1, "even": 1}, "p", 0, False
    )
    assert sorted(mixed.next(10)) == items
    with pytest.raises(ValueError, match="names none, but no prompt"):
        make_order(items, lambda place: "some", {"some": 1, "none": 1}, "p", 0, False)
    assert list(Subset("abcdef", [4, 1])) == ["e", "b"]
