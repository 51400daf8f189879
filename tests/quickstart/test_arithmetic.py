"""Chain arithmetic: every operation is a bijection, and the demonstrator's mistakes are systematic."""

from megatron_prime.quickstart import arithmetic


def test_every_step_is_a_bijection():
    for operator, operands in arithmetic.OPERANDS.items():
        for operand in operands:
            assert len({arithmetic.evaluate(value, operator, operand) for value in range(10)}) == 10


def test_habits_are_fixed_wrong_results_for_three_tenths_of_each_operators_table():
    habits = arithmetic.Demonstrator(seed=1).habits
    counts = {operator: sum(entry[1] == operator for entry in habits) for operator in arithmetic.OPERANDS}
    assert counts == {"+": 30, "-": 30, "x": 9}
    assert all(arithmetic.evaluate(*entry) != wrong and 0 <= wrong <= 9 for entry, wrong in habits.items())
    assert habits == arithmetic.Demonstrator(seed=1).habits != arithmetic.Demonstrator(seed=2).habits
