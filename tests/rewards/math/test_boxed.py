import time

import pytest

from megatron_prime.rewards.math.boxed import MAX_TAIL_CHARS, closing_brace, last_boxed, unwrap_boxed
from tests.support import deadlines


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} but then \boxed{2}", "2"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\boxed{1}\boxed{2}} or \fbox{3}", "1, 2 or 3"),
        (r"\boxed{\boxed{18}^2}", "{18}^2"),
        (r"\boxed{x = \boxed{3}}", "x = {3}"),
        (r"$\boxed{18}^2$", "{18}^2"),
        (r"$\boxed{18}^{\circ}$", r"{18}^{\circ}"),
        (r"\boxed{1 \boxed{2}", "2"),
        (r"\boxed{}", ""),
        (r"\boxed{42}\boxed{}", ""),
        (r"\boxed{2} cut: \boxed{\frac{1}{", "2"),
        (r"\boxed{2", None),
        ("42", None),
        ("", None),
        (r"\boxed 5", None),
        (r"$\boxed{2}$ and $\boxed{3}$", "2, 3"),
        (r"\boxed{2}, \boxed{3}, \text{ and } \boxed{4}", "2, 3, 4"),
        (r"\boxed{41} or \boxed{42}", "41 or 42"),
        ("\\boxed{1}\n\n\\boxed{2}", "2"),
        (r"\boxed{1} is wrong, so \boxed{2}", "2"),
    ],
)
def test_the_last_complete_box_is_found(text, answer):
    assert last_boxed(text) == answer


def test_only_the_end_of_a_long_response_is_searched_in_linear_time():
    assert last_boxed(r"\boxed{1}" + "x" * MAX_TAIL_CHARS) is None
    assert last_boxed(r"\boxed{1}" + "x" * (MAX_TAIL_CHARS - 20)) == "1"
    start = time.process_time()
    assert last_boxed(r"\boxed{" * 100_000) is None
    assert last_boxed(r"\boxed{}" * 100_000) is not None
    assert last_boxed("{" * 100_000 + r"\boxed{1}" + "}" * 10_000) == "1"
    assert time.process_time() - start < deadlines.seconds(1.0)


@pytest.mark.parametrize(
    ("text", "bare"),
    [(r"\boxed{7}", "7"), (r"$\boxed{7}$", "7"), (r"7", "7"), (r"x = \boxed{7}", r"x = \boxed{7}")],
)
def test_a_boxed_ground_truth_is_unwrapped(text, bare):
    assert unwrap_boxed(text) == bare


def test_closing_brace_counts_depth_and_skips_escapes():
    assert closing_brace(r"a{b}\}c}d", 0) == 7
    assert closing_brace("{}", 1) == 1
    assert closing_brace("a{b}", 0) is None
