import pytest

from megatron_prime.rewards.math.clock import times_equal


@pytest.mark.parametrize(
    ("gold", "given", "equal"),
    [
        ("12:00", "1:00", False),
        ("7:05", "07:05", True),
        (r"3:30\text{ p.m.}", "3:30 PM", True),
        (r"3:30\text{ p.m.}", "15:30", True),
        (r"3:30\text{ p.m.}", "3:30", False),
        ("3:30", r"3:30\text{ p.m.}", True),
        ("15:30", "3:30 pm", True),
        ("12:00 am", "0:00", True),
        (r"\text{noon}", "12:00 p.m.", True),
        ("3 pm", "3:00 p.m.", True),
        ("10:20", r"\frac{1}{2}", False),
        ("3:10", r"\frac{3}{10}", True),
        ("2:3", "4:6", None),
        ("12:75", "12:75", None),
        ("1:2:3", "1:2:3", None),
        ("5", "5:00", None),
        ("25:00 pm", "1", None),
    ],
)
def test_times_of_day(gold, given, equal):
    assert times_equal(gold, given) is equal
