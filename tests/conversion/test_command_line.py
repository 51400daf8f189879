import pytest

from megatron_prime.conversion.command_line import conversion_parser, run_tool


@pytest.fixture
def options():
    parser = conversion_parser("Convert.", "model", "a folder", default_file_mib=7)
    return parser.parse_args(["in", "out", "--workers", "3"])


def test_both_tools_share_their_options(options):
    assert (str(options.source), str(options.output)) == ("in", "out")
    assert (options.workers, options.file_mib, options.compare_logits) == (3, 7, False)


def test_a_conversion_reports_its_output_and_the_compared_log_probs(options, capsys):
    assert run_tool("tool", options, lambda options, progress: 0.25) == 0
    printed = capsys.readouterr().out
    assert "largest difference of log-probs: 0.25" in printed
    assert "in written to out" in printed


@pytest.mark.parametrize("error", [ValueError("bad"), OSError("bad"), RuntimeError("bad")])
def test_an_error_is_printed_in_one_line(options, capsys, error):
    def fail(options, progress):
        raise error

    assert run_tool("tool", options, fail) == 2
    assert capsys.readouterr().err == "tool: bad\n"
