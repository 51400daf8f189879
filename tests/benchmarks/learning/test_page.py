"""The page of the learning benchmark has the tables of the records."""

from pathlib import Path

from benchmarks.learning import page, records
from benchmarks.learning.page import write_page
from tests.benchmarks.learning.test_analysis import record


def test_tables_plots_and_tuning_come_from_the_records():
    found = [record([0.1] * 4 + [0.1] * 4, "rloo", seed) for seed in (11, 12)]
    found += [record([0.1] * 4 + [0.9] * 4, "hindsight", seed) for seed in (11, 12, 13)]
    found.append(record([0.9] * 4, "hindsight", 1, tried=("prm.lr=1e-3",)))
    text = page.page("a\n{{results marks}}\n{{results plain8}}\n{{tuning}}\nb", found)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    (rloo, hindsight), (ratios,), (tuned,) = rows[2:4], rows[6:7], rows[9:10]
    assert rloo[1:4] == ["2", "0.100 ± 0.000", "2"] and rloo[4] == "1,024 ± 0 (2 never)"
    assert hindsight[1:4] == ["3", "0.900 ± 0.000", "0"]
    assert ratios[1] == "2" and ratios[2].startswith("1.33 ")
    assert (
        tuned[0:2] == ["marks", "hindsight"]
        and "prm.lr=1e-3" in tuned[2]
        and tuned[3].startswith("0.90, 512")
    )
    (summed,) = [row.split(" | ") for row in page.short(found)[2:]]
    assert summed[2] == "2" and summed[3].startswith("1.14 [") and summed[4].startswith("1.14 [")
    never = [record([0.1] * 8, method, seed) for method in ("rloo", "hindsight") for seed in (11, 12)]
    assert "no run reached it" in page.short(never)[2]
    assert page.counts(found) == ["- PRIME, hindsight credit: 1 on `marks`"]
    assert "This task has not been run on held-out seeds." in text
    plot = page.plot_of("marks", [each for each in found if not each.tried])
    assert plot is not None and plot.count("<polyline") == 2 and "hindsight credit" in plot


def test_the_page_in_the_repository_is_that_of_its_records(tmp_path, monkeypatch):
    before = page.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(page, "PAGE", tmp_path / "learning.md")
    monkeypatch.setattr(page, "IMAGES", tmp_path)
    write_page()
    assert (tmp_path / "learning.md").read_text(encoding="utf-8") == before
    images = Path(page.ROOT / "docs" / "images")
    for image in tmp_path.glob("*.svg"):
        assert image.read_bytes() == (images / image.name).read_bytes()
    assert all(run.commit for run in records.read())
