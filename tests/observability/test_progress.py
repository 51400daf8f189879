import io
import logging
import os
import sys
import time
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.table import Table

from megatron_prime.observability import activity
from megatron_prime.observability import progress as progress_module
from megatron_prime.observability.progress import Progress, route_warnings
from tests.support.screen import Screen, Terminal, run_on_terminal


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


def plain(output: io.StringIO) -> Progress:
    return Progress(console=Console(file=output, force_terminal=False, width=40))


def test_a_log_file_gets_unwrapped_plain_lines(output):
    reporter = plain(output)
    reporter.line("x" * 100)
    reporter.line("[red]as it stands[/red] 3.5")
    assert output.getvalue() == "x" * 100 + "\n[red]as it stands[/red] 3.5\n"


def test_names_are_shown_as_they_stand(capsys):
    names = "[red]x[/red] [/y] :key: [bold]"
    table = Table("set", title=names)
    table.add_row(names)
    Progress().table(table)
    Progress().line(names)
    assert capsys.readouterr().out.count(names) == 3


def test_a_step_line_shows_the_metrics_that_exist(output):
    labels = {"rollout/accuracy_batch": "reward", "eval/accuracy": "eval", "time/step_s": "s"}
    plain(output).step(3, 20, {"rollout/accuracy_batch": 0.41666, "time/step_s": 12.3456}, labels)
    assert output.getvalue() == "step 3/20  reward 0.4167  s 12.35\n"


def test_a_short_phase_is_silent_in_a_log_file(output):
    with plain(output).phase("rollout", total=4) as advance:
        for _ in range(4):
            advance(1)
    assert output.getvalue() == ""


def test_a_long_phase_reports_its_progress(output, monkeypatch):
    monkeypatch.setattr(progress_module, "PLAIN_INTERVAL_S", 0.0)
    with plain(output).phase("rollout", total=4) as advance:
        advance(1)
        advance(3)
    assert output.getvalue() == "rollout: 1/4\nrollout: 4/4\n"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    found = Terminal()
    yield found
    found.close()


def on(terminal: Terminal, columns: int = 80) -> Progress:
    return Progress(console=Console(file=terminal.file, width=columns, height=24))


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    """Remove the variables that say what the terminal of the tests can do."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_gets_a_bar(terminal):
    reporter = on(terminal)
    with reporter.phase("rollout", total=4) as advance:
        advance(3)
        reporter.line("a line above the bar [red]")
        assert Screen(terminal.read()).lines[0] == "a line above the bar [red]"
    assert "rollout" not in Screen(terminal.read()).lines


def test_the_status_of_a_run_stays_below_lines_warnings_and_tables(terminal):
    reporter = on(terminal)
    with reporter.run("prime", 6, 2, {"rollout/accuracy_sampled": "accuracy"}) as step_done:
        reporter.line("a line")
        reporter.warn("a warning")
        table = Table("head")
        table.add_row("cell")
        reporter.table(table)
        step_done({"rollout/accuracy_sampled": 0.25})
        reporter.line("end")
        text = terminal.read()
    lines = Screen(text).lines
    assert lines[:2] == ["a line", "WARNING: a warning"] and any("cell" in line for line in lines)
    assert lines[-4:-2] == ["end", ""]
    assert lines[-2].startswith("prime  step 3/6  ━") and lines[-1].startswith("accuracy 0.25  ")
    screen = Screen(text + terminal.read())
    assert screen.lines[-1] == "end" and screen.is_cursor_visible


KILLED = """
import os, signal
from megatron_prime.observability.progress import Progress
progress = Progress()
with progress.run("prime", 6, 0, {"a/b": "a"}):
    progress.line("a line")
    os.kill(os.getpid(), signal.{signal})
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_a_killed_program_leaves_a_visible_cursor_on_an_empty_line(name):
    program = [sys.executable, "-c", KILLED.replace("{signal}", name)]
    _, text = run_on_terminal(program, {**os.environ, "PYTHONPATH": os.getcwd()})
    before_end = text.partition("Traceback")[0]  # that of the KeyboardInterrupt
    screen = Screen(before_end)
    assert screen.lines[0] == "a line" and screen.is_cursor_visible and "\x1b[?25" not in text
    assert screen.column == 0 and "".join(screen.lines[1:2]).strip() == "" and screen.row == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError("fault")])
def test_an_error_leaves_the_terminal_clean(terminal, error):
    reporter = on(terminal)
    with pytest.raises(BaseException), reporter.run("prime", 6, 0, {"a/b": "a"}), reporter.phase("x", 2):  # noqa: B017
        reporter.line("before")
        raise error
    screen = Screen(terminal.read())
    assert screen.lines == ["before"] and (screen.row, screen.column) == (1, 0)


def test_the_line_of_a_step_fits_the_terminal(terminal):
    labels = {f"a/{number}": f"label{number}" for number in range(9)}
    on(terminal, columns=40).step(1, 6, dict.fromkeys(labels, 0.5), labels)
    assert Screen(terminal.read()).lines == ["step 1/6  label0 0.5  label1 0.5"]


@pytest.mark.parametrize(
    ("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "unknown")], ids=lambda text: text
)
def test_a_terminal_that_cannot_or_shall_not_gets_plain_lines(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    reporter = on(terminal)
    with reporter.run("prime", 6, 0, {"a/b": "a"}) as step_done, reporter.phase("x", 2) as advance:
        advance(1)
        step_done({"a/b": 0.5})
        reporter.step(1, 6, {"a/b": 0.5}, {"a/b": "a"})
    assert terminal.read() == "step 1/6  a 0.5\r\n"


def test_a_log_file_stays_plain_also_where_colours_are_forced(output, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    reporter = Progress(console=Console(file=output, width=40))
    with reporter.run("prime", 6, 0, {"a/b": "a"}) as step_done, reporter.sampling("evaluation"):
        step_done({"a/b": 0.5})
        reporter.line("line")
    assert output.getvalue() == "line\n"


def test_sampling_is_reported_in_a_log_file_from_time_to_time(output, monkeypatch):
    monkeypatch.setattr(progress_module, "PLAIN_INTERVAL_S", 0.01)
    # The workers of a process are global: one that another test has left at work would be counted, too.
    monkeypatch.setattr(activity, "_workers", {})
    engine = activity.worker("an engine of this test", activity.ENGINE)
    with plain(output).sampling("evaluation"):
        for _ in engine.each([[1, 2], [3]]):
            time.sleep(0.05)
    assert "evaluation: sampled 2/3\n" in output.getvalue()


def test_other_ranks_are_silent(output):
    reporter = Progress(enabled=False, console=Console(file=output, force_terminal=True))
    reporter.line("no")
    reporter.step(0, 1, {}, {})
    with reporter.phase("rollout", total=1) as advance:
        advance(1)
    assert output.getvalue() == ""


@pytest.fixture
def package_logger():
    logger = logging.getLogger("megatron_prime")
    handlers, propagate = logger.handlers[:], logger.propagate
    yield logger
    logger.handlers[:], logger.propagate = handlers, propagate


def test_logged_warnings_are_shown_once_as_progress_warnings_on_rank_0(output, package_logger):
    route_warnings(plain(output), rank=0)
    route_warnings(plain(output), rank=0)
    package_logger.getChild("engines.sglang").warning("weight sync %d failed: [red]", 3)
    package_logger.getChild("engines.sglang").info("not a warning")
    assert output.getvalue() == "WARNING: weight sync 3 failed: [red]\n"


def test_logged_warnings_of_other_ranks_go_to_standard_error(output, package_logger, capsys):
    route_warnings(plain(output), rank=2)
    package_logger.getChild("rewards.verifier").warning("the verifier timed out")
    assert output.getvalue() == ""
    assert capsys.readouterr().err == "WARNING: rank 2: the verifier timed out\n"


def test_addresses_lose_their_secrets_on_every_way(output, package_logger, capsys):
    reporter = plain(output)
    reporter.line("asking http://u:SECRET@host/v?SECRET")
    reporter.warn("no answer from http://u:SECRET@host")
    route_warnings(reporter, rank=0)
    package_logger.warning("%s failed", "http://host/v?SECRET")
    assert output.getvalue().splitlines() == [
        "asking http://***@host/v?***",
        "WARNING: no answer from http://***@host",
        "WARNING: http://host/v?*** failed",
    ]
    route_warnings(reporter, rank=1)
    package_logger.warning("%s failed", "http://host/v?SECRET")
    assert capsys.readouterr().err == "WARNING: rank 1: http://host/v?*** failed\n"
