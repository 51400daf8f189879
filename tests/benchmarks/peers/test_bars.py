"""The plot of ranges."""

from benchmarks.peers.bars import ranged_bars


def test_the_plot_names_every_trainer_and_escapes_what_it_is_given():
    plot = ranged_bars("a < b", [("ours", 1.0, 2.0, 3.0), ("TRL", 1.0, 1.0, 1.0)])
    assert "a &lt; b" in plot and plot.count("<rect") == 3 and "2.00" in plot
    assert ranged_bars("nothing measured", []).endswith("</svg>\n")
