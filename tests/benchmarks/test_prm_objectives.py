from benchmarks.prm_objectives import NUM_BATCHES, run, table


def test_a_prm_learns_which_facts_are_wrong_and_the_table_says_how_well():
    """Four steps are nearly always told apart; one seed takes a tenth of a second."""
    curve = run("ce_intercept", 4, 0)
    assert len(curve) == NUM_BATCHES
    assert curve[-1][0] > 0.95 and curve[-1][1] > 0.9
    lines = table(["ipvrm"], 4, [0])
    assert len(lines) == 3
    assert lines[2].startswith("| `ipvrm` | 10 | ")
    assert len({line.count("|") for line in lines}) == 1
