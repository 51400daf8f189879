import json
from collections import Counter

import pytest

from megatron_prime.data.ordering import FORMAT, ResumableOrder


def order(seed=0, shuffle=True, num_items=7, fingerprint="f"):
    return ResumableOrder([f"item {index}" for index in range(num_items)], fingerprint, seed, shuffle)


def test_every_epoch_visits_every_item_once_in_a_new_order():
    visited = order(num_items=50)
    first, second = visited.next(50), visited.next(50)
    assert Counter(first) == Counter(second) == Counter(f"item {index}" for index in range(50))
    assert first != second


def test_the_order_depends_on_the_seed_alone():
    assert order(1, num_items=50).next(120) == order(1, num_items=50).next(120)
    assert order(1, num_items=50).next(50) != order(2, num_items=50).next(50)


def test_without_shuffling_items_come_in_file_order():
    assert order(shuffle=False, num_items=3).next(5) == ["item 0", "item 1", "item 2", "item 0", "item 1"]


def test_the_order_does_not_depend_on_how_many_items_are_requested():
    one, many = order(), order()
    assert [item for _ in range(30) for item in one.next(1)] == many.next(13) + many.next(17)


@pytest.mark.parametrize("position", [0, 1, 6, 7, 8, 14, 20])
def test_resuming_anywhere_continues_the_same_order(position):
    whole = order(seed=3)
    whole.next(position)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = order(seed=3)
    resumed.next(5)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.next(25) == whole.next(25)
    assert resumed.epoch == whole.epoch


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"fingerprint": "g"}, "data set"),
        ({"seed": 1}, "seed"),
        ({"shuffle": False}, "data.shuffle"),
    ],
)
def test_a_state_of_other_data_is_rejected(other, named):
    with pytest.raises(ValueError, match=f"another {named}"):
        order().load_state_dict(order(**other).state_dict())


PROMPTS, OTHERS, METADATA, OTHER_METADATA = ("0123456789abcdef", "1123456789abcdef", "a" * 16, "b" * 16)
METADATA_CASES = [
    # fingerprints of the checkpoint and of the run, which the first group of weights may follow; whether they agree
    (f"{PROMPTS}+{METADATA}", f"{PROMPTS}+{METADATA}", True),
    (f"{PROMPTS}+{METADATA}", f"{PROMPTS}+{OTHER_METADATA}", False),
    (f"{PROMPTS}+{METADATA}", PROMPTS, True),
    (PROMPTS, f"{PROMPTS}+{METADATA}", True),
    (f"{OTHERS}+{METADATA}", PROMPTS, False),
    (f"{PROMPTS}+{METADATA}/a+b", f"{PROMPTS}/a+b", True),
    (f"{PROMPTS}+{METADATA}/a", f"{PROMPTS}/b", False),
    (f"{PROMPTS}/a+b", f"{PROMPTS}/a+c", False),
]


@pytest.mark.parametrize(("written", "now", "is_same"), METADATA_CASES)
def test_metadata_count_if_both_runs_read_them(written, now, is_same):
    state = order(fingerprint=written).state_dict()
    if is_same:
        order(fingerprint=now).load_state_dict(state)
        return
    with pytest.raises(ValueError, match="another data set"):
        order(fingerprint=now).load_state_dict(state)


FORMATS = {
    # format and fingerprint of the checkpoint -> the error, or None if it is resumed
    "this one": (FORMAT, "f", None),
    "this one, other data": (FORMAT, "g", "another data set"),
    "an older one": (1, "g", "made by an older version of megatron_prime"),
    "none yet": (None, "g", "made by an older version of megatron_prime"),
    "none yet, same data": (None, "f", None),
    "a newer one": (FORMAT + 1, "g", "made by a newer version of megatron_prime"),
}


@pytest.mark.parametrize("case", FORMATS)
def test_data_of_another_version_are_not_called_changed(case):
    number, fingerprint, reason = FORMATS[case]
    state = order(fingerprint=fingerprint).state_dict() | {"format": number}
    if number is None:
        del state["format"]
    if reason is None:
        order().load_state_dict(state)
        return
    with pytest.raises(ValueError, match=reason):
        order().load_state_dict(state)


def test_a_position_outside_the_data_is_rejected():
    with pytest.raises(ValueError, match="out of range"):
        order().load_state_dict(order().state_dict() | {"offset": 8})


def test_an_empty_data_set_is_rejected():
    with pytest.raises(ValueError, match="empty"):
        ResumableOrder([], "f", 0, True)
