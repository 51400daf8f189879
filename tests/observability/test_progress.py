import io
import logging

import pytest
from rich.console import Console

from megatron_prime.observability import progress as progress_module
from megatron_prime.observability.progress import Progress, route_warnings


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


def test_a_terminal_gets_a_bar(output):
    reporter = Progress(console=Console(file=output, force_terminal=True, width=80))
    with reporter.phase("rollout", total=4) as advance:
        advance(4)
        reporter.line("a line above the bar")
    assert "rollout" in output.getvalue()
    assert "4/4" in output.getvalue()
    assert "a line above the bar" in output.getvalue()


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
