"""The benchmark of the log-prob kernels reports every method and its errors; its GPU cases need a GPU."""

import json

import pytest
import torch

from benchmarks import logprob_kernel, logprob_methods
from benchmarks.logprob_kernel import Sizes, measure, table

SIZES = Sizes(num_tokens=48, vocab_size=3000, hidden_size=16, tile_tokens=8)
ON_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"))
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


@pytest.fixture(scope="module", params=DEVICES)
def rows(request):
    return measure(request.param, "fp32", SIZES, repeats=2)


def of(rows, level, method):
    return {row.step: row for row in rows if (row.level, row.method) == (level, method)}


def test_every_method_is_reported_once_per_step_or_with_a_reason(rows):
    for level in ("tile", "layer"):
        methods = {row.method for row in rows if row.level == level}
        assert {"ours, triton", "ours, torch", *logprob_methods.OF_LOGITS} <= methods
        for method in methods:
            steps = of(rows, level, method)
            assert len(steps) == len([row for row in rows if (row.level, row.method) == (level, method)])
            ran = {step for step, row in steps.items() if row.seconds is not None}
            assert ran >= {"forward", "forward + backward"} or all(row.note for row in steps.values())
    assert of(rows, "tile", "ours, torch").keys() == {"forward", "backward", "forward + backward"}


def test_methods_that_ran_are_correct(rows):
    errors = {(row.level, row.method): row.error for row in rows if row.seconds is not None}
    assert {("tile", "naive"), ("layer", "naive"), ("tile", "ours, torch"), ("layer", "ours, torch")} <= set(
        errors
    )
    # Third-party libraries may multiply in TF32.
    exact = {
        key: error for key, error in errors.items() if "cut" not in key[1] and "fused linear" not in key[1]
    }
    assert max(exact.values()) < 1e-5, errors
    assert max(errors.values()) < 1e-2, errors


def test_floors_are_the_bytes_that_must_move(rows):
    floors = {step: row.floor_seconds for step, row in of(rows, "tile", "ours, torch").items()}
    assert floors["backward"] == pytest.approx(2 * floors["forward"])
    assert floors["forward + backward"] == pytest.approx(3 * floors["forward"])
    for row in rows:
        assert row.floor_seconds > 0
        assert row.ratio == (None if row.seconds is None else row.seconds / row.floor_seconds)


def test_the_peak_memory_of_a_layer_is_counted(rows):
    peaks = {
        method: of(rows, "layer", method)["forward + backward"].peak_bytes
        for method in ("naive", "ours, torch")
    }
    logits = 4 * SIZES.num_tokens * SIZES.vocab_size
    assert peaks["naive"] > 3 * logits
    gradients = 4 * SIZES.hidden_size * (SIZES.num_tokens + SIZES.vocab_size)
    assert peaks["ours, torch"] < 2.2 * logits + gradients, "two tiles, which hold all tokens here"


def test_a_method_that_fails_does_not_stop_the_others(monkeypatch):
    def broken():
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(logprob_methods, "OF_LOGITS", {"naive": broken})
    rows = measure("cpu", "bf16", Sizes(8, 300, 8, 8), repeats=1)
    failed = [row for row in rows if row.method == "naive"]
    assert [(row.level, row.seconds, row.note) for row in failed] == [
        (level, None, "RuntimeError: out of memory") for level in ("tile", "layer")
    ]
    assert of(rows, "layer", "ours, torch")["forward"].seconds is not None


def test_the_command_prints_tables_and_writes_json(monkeypatch, tmp_path, capsys):
    command = "logprob_kernel.py --device cpu --dtype fp32 --tokens 16 --vocab 200 --hidden 8 --repeats 1"
    monkeypatch.setattr("sys.argv", [*command.split(), "--json", str(tmp_path / "rows.json")])
    logprob_kernel.main()
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "rows.json").read_text())
    assert report["sizes"] == {"num_tokens": 16, "vocab_size": 200, "hidden_size": 8, "tile_tokens": 64}
    assert len([line for line in printed.splitlines() if line.startswith("| ours")]) == len(
        [row for row in report["rows"] if row["method"].startswith("ours")]
    )
    rows = [logprob_kernel.Row(**{key: row[key] for key in row if key != "ratio"}) for row in report["rows"]]
    assert table(rows) in printed
