"""The page of the comparison: ratios are of runs of one round."""

from benchmarks.peers import report


def run(trainer, step_s, tokens=100.0):
    step = {"step_s": step_s, "cpu_s": step_s / 2, "sampling_s": step_s / 4, "sampled_tokens": tokens}
    return {"size": "5M", "trainer": trainer, "load": 1.0, "peak_mb": 10.0, "steps": [step, step]}


def test_ratios_are_of_runs_of_one_round():
    records = [run("ours RLOO", 1.0), run("TRL RLOO", 2.0), run("ours RLOO", 10.0), run("TRL RLOO", 40.0)]
    row = next(line for line in report._table("5M", records).splitlines() if line.startswith("| ours RLOO"))
    assert row == (
        "| ours RLOO | 55 | 3.00 [2.00, 4.00] | 3.00 [2.00, 4.00] | 3.00 [2.00, 4.00] | 3.00 [2.00, 4.00] | 10 |"
    )


def test_a_size_without_runs_says_so():
    assert "Not measured" in report._table("50M", [run("TRL RLOO", 1.0)])


def test_the_page_and_its_plot_are_those_of_the_records(tmp_path, monkeypatch):
    written = {name: getattr(report, name).read_text() for name in ("PAGE", "PLOT")}
    for name in written:
        monkeypatch.setattr(report, name, tmp_path / name)
    report.write_report()
    assert {name: (tmp_path / name).read_text() for name in written} == written
