"""The tables have a row for each version and size."""

from benchmarks.controller.report import PHASES, STAGES, alive_table, host_table, tensor_table

GIB = 1 << 30


def found(responses=16, is_full=False):
    phase = {"tensor_s": 1.0, "bytes": 2e9, "count": 7, "peak": GIB, "other": 2 * GIB}
    return {
        "responses": responses,
        "is_full": is_full,
        "tokens": 2_500_000,
        "stages": {"engine": 0.5, "pickled": 0.25} | dict.fromkeys(STAGES, 2.6),
        "peak": 3 * GIB,
        "sent": 3e6,
        "rollouts": GIB,
        "phases": dict.fromkeys(PHASES, phase),
        "at_peak": [(GIB, "(2, 3) bool", "a.py f"), (2 * GIB, "(4, 5) float32", "b.py g")],
    }


def test_tables_are_sorted_by_size():
    rows = host_table({"before": [found(256)], "after": [found(256), found(16), found(16, True)]})
    assert [row.split(" | ")[:2] for row in rows[2:]] == [
        ["| after", "16"],
        ["| before", "256"],
        ["| after", "256"],
        ["| after", "16, all of the longest"],
    ]
    assert "**13.00**" in rows[2] and "0.25 (3)" in rows[2]
    assert len(tensor_table({"after": [found() | {"phases": {}}]})) == 2
    assert tensor_table({"after": [found()]})[2].startswith("| after | 16 | 35 | 10.0 | 5.0 | **1.00** |")


def test_the_largest_tensor_comes_first():
    assert [row.split(" | ")[0] for row in alive_table(found())[2:]] == ["| `b.py g`", "| `a.py f`"]
