"""The argument parser accepts valid command lines and refuses others."""

import pytest

from megatron_prime.cli.arguments import parser


def test_overrides_come_after_the_file_and_flags_after_them():
    options = parser().parse_args(["plan", "run.toml", "policy.lr=1", "--gpu", "B200", "--gpu-set", "a=1"])
    assert (options.overrides, options.gpu, options.gpu_set) == (["policy.lr=1"], "B200", ["a=1"])
    options = parser().parse_args(["convert", "run.toml", "--output", "x", "--role", "prm", "--workers", "3"])
    assert (options.role, options.workers, options.dtype, options.compare_logits) == ("prm", 3, "keep", False)


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly", "run.toml"], ["convert", "run.toml"], ["convert", "run.toml", "--dtype", "int8"]],
)
def test_invalid_usage_exits_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(arguments)
    assert ended.value.code == 2
    assert "usage: megatron-prime" in capsys.readouterr().err
