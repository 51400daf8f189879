"""The charts become png and svg files, one each, and text stays text."""

import math
import sys

import pytest

from megatron_prime.viewer.figures import export_figures
from megatron_prime.viewer.runs import Run

RECORDS = [
    {
        "step": step,
        "rollout/accuracy_sampled": 0.2 * step,
        "rollout/accuracy_batch": 0.5,
        "time/step_s": 2.0,
        "time/prm_s": 1.0,
    }
    for step in (1, 2, 3)
]


def test_each_chart_is_a_file(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [Run(tmp_path, name, RECORDS, {}) for name in ("a$x$", "_b<&>")]
    files = export_figures(runs, tmp_path / "figures", "svg")
    assert [path.name for path in files] == ["accuracy.svg", "time_1.svg", "time_2.svg"]
    assert set(files) == set((tmp_path / "figures").iterdir())
    text = files[0].read_text(encoding="utf-8")
    for words in ("Training accuracy", "% right", "a$x$, all sampled", "b&lt;&amp;&gt;, training batch"):
        assert words in text
    again = export_figures(runs, tmp_path / "again", "svg")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]


def test_png_and_gaps(tmp_path):
    pytest.importorskip("matplotlib")
    records = [
        {"step": 1, "prm/ce": None},
        {"step": 2, "prm/ce": 0.5},
        {"step": 3, "time/step_s": 1.0, "time/prm_s": 0.5},
    ]
    files = export_figures([Run(tmp_path, "a", records, {})], tmp_path, "png")
    assert [path.name for path in files] == ["prm_loss.png", "time.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)


def test_a_run_without_the_values_of_a_chart_has_no_file(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [Run(tmp_path, "a", [{"step": 1, "prm/ce": 0.5}], {}), Run(tmp_path, "b", RECORDS, {})]
    runs.append(Run(tmp_path, "c", [{"step": 1, "policy/entropy": math.nan}], {}))
    files = export_figures(runs, tmp_path, "svg")
    assert [path.name for path in files] == ["accuracy.svg", "prm_loss.svg", "time_2.svg"]


def test_a_run_without_metrics_and_a_missing_matplotlib_are_errors(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="--export: no run has metrics"):
        export_figures([Run(tmp_path, "a", [], {})], tmp_path, "png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ValueError, match=r"needs matplotlib, which is not installed: pip install 'megatron-prime\[plots\]'"
    ):
        export_figures([], tmp_path, "png")
