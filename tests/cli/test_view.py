"""The command writes pages, figures, or serves pages, and answers mistakes in one line."""

import re
import signal
import subprocess
import sys

import httpx
import pytest

from megatron_prime.cli.arguments import Options, parse
from megatron_prime.cli.commands import run_command
from tests.support import deadlines
from tests.support.forked_commands import FRESH
from tests.support.viewed_runs import write_metrics, write_run


@pytest.fixture
def call(capsys):
    """Run the command; return its exit code, standard output and errors."""

    def called(*words):
        options = parse(["view", *map(str, words)])
        assert isinstance(options, Options)
        code = run_command(options)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


def test_pages_are_written_into_the_run_and_the_browser_opens_them(call, tmp_path, monkeypatch):
    write_run(tmp_path / "run")
    opened = []
    monkeypatch.setattr("megatron_prime.cli.view._open", opened.append)
    code, out, err = call(tmp_path / "run")
    page = tmp_path / "run" / "view" / "index.html"
    assert (code, out, err) == (0, f"wrote {page}\n", "")
    assert opened == [page.as_uri()]
    assert call(tmp_path / "run", "--no-open", "-q") == (0, "", "")
    assert len(opened) == 1


def test_several_runs_and_a_folder_of_ones_own(call, tmp_path):
    for name in ("a", "b"):
        write_metrics(tmp_path / name, num_steps=2)
    code, _, err = call(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out", "--no-open")
    assert code == 0
    assert "WARNING: a: no responses have been logged" in err
    assert not (tmp_path / "a" / "view").exists()
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert ">a</bdi>" in text
    assert ">b</bdi>" in text


def test_figures(call, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "prm/ce": 0.5}\n{"step": 2, "prm/ce": 0.25}\n')
    code, out, _ = call(tmp_path, "--export", "svg")
    assert (code, out) == (0, f"wrote 1 figures: {tmp_path}/figures/*.svg\n")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["prm_loss.svg"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "is not a folder: name the run_dir of a run"),
        ("empty", "has no metrics.jsonl and no rollouts/"),
    ],
)
def test_a_folder_that_is_no_run_is_a_usage_error_and_stays_as_it_was(call, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    code, _, err = call(tmp_path / name, "--no-open")
    assert code == 2
    assert message in err
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_server_runs_until_it_is_interrupted(tmp_path):
    write_metrics(tmp_path / "run", num_steps=2)
    words = ["view", str(tmp_path / "run"), "--serve", "--no-open", "-q"]
    command = [sys.executable, *FRESH, "-m", "megatron_prime", *words]
    # A shell that starts the tests in the background lets their processes ignore interrupts.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        try:
            line = process.stdout.readline()
            url = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+/[\w-]+/index\.html)\n", line)[1]
            assert httpx.get(url, timeout=deadlines.seconds(20)).status_code == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(deadlines.seconds(20)) == 0
        finally:
            process.kill()
