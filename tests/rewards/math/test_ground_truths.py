import pytest

from megatron_prime.rewards.math.ground_truths import alternatives, check_ground_truth


@pytest.mark.parametrize(
    ("answer", "items"),
    [
        ('["5", "five"]', ["5", "five"]),
        ("[1, 2]", ["[1, 2]"]),  # an interval
        ("[x, y]", ["[x, y]"]),
        ('["a", 1]', ["a", "1"]),
        ("[[1, 2], [3, 4]]", ["[[1, 2], [3, 4]]"]),
        ("{}", ["{}"]),  # the empty set
        ("{1, 2}", ["{1, 2}"]),
        ("5", ["5"]),
    ],
)
def test_a_json_list_of_texts_names_alternatives(answer, items):
    assert alternatives(answer) == items


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("[]", "blank"),
        ('["5", ""]', "blank"),
        ('["a", ["b"]]', "something else than texts"),
        ("[null]", "something else than texts"),
        ("[true]", "something else than texts"),
        ('{"answer": 5}', "JSON object"),
        ("proof", "without an answer"),
        ("notfound", "without an answer"),
        ("$$", "empty but for its notation"),
        (r"\boxed{}", "empty but for its notation"),
        ("['5', 'five']", "as Python prints it"),
    ],
)
def test_ground_truths_that_nothing_can_match_are_refused(answer, reason):
    with pytest.raises(ValueError, match=reason):
        check_ground_truth(answer)


@pytest.mark.parametrize(
    "answer", ["42", "[1, 2)", "{1, 2}", r"\{1,2\}", '["5", "five"]', "[1, 2]", r"\emptyset", "x'"]
)
def test_other_ground_truths_are_taken(answer):
    check_ground_truth(answer)
