"""The page of the comparison: ratios are of runs of one round."""

from benchmarks.peers import report


def run(trainer, step_s, tokens=100.0, workload="5M"):
    step = {"step_s": step_s, "cpu_s": step_s / 2, "sampling_s": step_s / 4, "sampled_tokens": tokens}
    return {"workload": workload, "trainer": trainer, "load": 1.0, "peak_mb": 10.0, "steps": [step, step]}


def decoded(method, seconds, batch_size=8):
    times = {"seconds": seconds, "cpu_s": seconds / 2}
    return {
        "decoding": "5M",
        "method": method,
        "batch_size": batch_size,
        "tokens": 100,
        "equal": 1.0,
        "load": 1.0,
        **times,
    }


def test_ratios_are_of_runs_of_one_round():
    records = [run("ours RLOO", 1.0), run("TRL RLOO", 2.0), run("ours RLOO", 10.0), run("TRL RLOO", 40.0)]
    row = next(line for line in report._table("5M", records).splitlines() if line.startswith("| ours RLOO"))
    assert row == (
        "| ours RLOO | 55 | 3.00 [2.00, 4.00] | 3.00 [2.00, 4.00] | 3.00 [2.00, 4.00] | 3.00 [2.00, 4.00] | 10 |"
    )


def test_workloads_of_one_size_are_not_mixed():
    records = [run("TRL RLOO", 2.0), run("TRL RLOO", 2.0, workload="5M-equal")]
    records += [run("ours RLOO", 1.0), run("ours RLOO", 4.0, workload="5M-equal")]
    assert "| 2.00 |" in report._table("5M", records) and "| 0.50 |" in report._table("5M-equal", records)
    plot = report._plot(records)
    assert "5M-equal, ours RLOO" in plot and ">0.50<" in plot


def test_a_workload_without_runs_says_so():
    assert "Not measured" in report._table("50M", [run("TRL RLOO", 1.0)])


def test_headings_say_lengths_and_processes():
    assert "64 tokens each" in report._title("5M-equal")
    assert report._title("5M-two").startswith("5M parameters") and "2 processes" in report._title("5M-two")


def test_decoding_is_compared_within_a_batch_size_and_round():
    records = [decoded("transformers dynamic", 2.0), decoded("embedded engine", 1.0)]
    records += [decoded("transformers dynamic", 9.0), decoded("embedded engine", 3.0)]
    records += [decoded("transformers dynamic", 1.0, 1), decoded("embedded engine", 1.0, 1)]
    rows = report._decoding_table(records).splitlines()
    assert "| 5M | 8 | embedded engine | 67 | 2.50 [2.00, 3.00] | 2.50 [2.00, 3.00] | 100% |" in rows
    assert "| 5M | 1 | embedded engine | 100 | 1.00 | 1.00 | 100% |" in rows
    assert "5M x 8, embedded engine" in report._decoding_plot(records)


def test_the_page_and_its_plots_are_those_of_the_records(tmp_path, monkeypatch):
    written = {name: getattr(report, name).read_text() for name in ("PAGE", "PLOT", "DECODING_PLOT")}
    for name in written:
        monkeypatch.setattr(report, name, tmp_path / name)
    report.write_report()
    assert {name: (tmp_path / name).read_text() for name in written} == written
