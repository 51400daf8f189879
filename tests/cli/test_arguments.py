"""The argument parser accepts valid command lines and refuses others."""

import pytest

from megatron_prime.cli.arguments import parse


def test_overrides_come_after_the_file_and_flags_after_them():
    options = parse(["plan", "run.toml", "policy.lr=1", "--gpu", "B200", "--gpu-set", "a=1"])
    assert (options.overrides, options.gpu, options.gpu_set) == (["policy.lr=1"], "B200", ("a=1",))
    options = parse(["convert", "run.toml", "--output", "x", "--role", "prm", "--workers", "3"])
    assert (options.role, options.workers, options.dtype, options.compare_logits) == ("prm", 3, "keep", False)


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly", "run.toml"], ["convert", "run.toml"], ["convert", "run.toml", "--dtype", "int8"]],
)
def test_invalid_usage_exits_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert "Usage: megatron-prime" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "run.toml", "policy.lr=1", "seed=2", "--gpu", "B200"],
        ["plan", "--gpu", "B200", "run.toml", "policy.lr=1", "seed=2"],
        ["plan", "policy.lr=1", "run.toml", "--gpu=B200", "seed=2"],
        ["plan", "policy.lr=1", "--gpu", "B200", "seed=2", "run.toml"],
    ],
)
def test_options_file_and_overrides_stand_in_any_order(arguments):
    options = parse(arguments)
    assert (str(options.config), options.overrides, options.gpu) == (
        "run.toml",
        ["policy.lr=1", "seed=2"],
        "B200",
    )


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["--dry-run", "run.toml", "seed=1"], "-"),
        (["run.toml", "--dry-run", "seed=1"], "-"),
        (["run.toml", "seed=1", "--dry-run"], "-"),
        (["--dry-run", "out", "run.toml", "seed=1"], "out"),
        (["--dry-run=out", "seed=1", "run.toml"], "out"),
    ],
)
def test_the_folder_of_a_dry_run_may_be_left_out_in_any_place(arguments, folder):
    options = parse(["train", *arguments])
    assert (str(options.config), options.overrides, options.dry_run) == ("run.toml", ["seed=1"], folder)


def test_a_file_whose_name_has_an_equals_sign_is_no_override(tmp_path):
    file = tmp_path / "lr=1.toml"
    file.touch()
    options = parse(["check", str(file), "seed=1"])
    assert (options.config, options.overrides) == (file, ["seed=1"])


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian", "run.toml"], "'train'"),
        (["chekc", "run.toml"], "'check'"),
        (["evaluate", "run.toml"], "'eval'"),
        (["plan", "run.toml", "--gpu-st", "a=1"], "--gpu-set"),
        (["train", "run.toml", "--dryrun"], "--dry-run"),
        (["train", "run.toml", "--policy.lr=1e-6"], "policy.lr=VALUE"),
        (["train", "run.toml", "--policy.lr", "1e-6"], "policy.lr=VALUE"),
        (["train", "run.toml", "--actor.lr=1e-6"], "policy.lr=VALUE"),
        (["train", "run.toml", "--max-response-length=9"], "rollout.max_response_tokens=VALUE"),
        (["train", "run.toml", "--learning_rate", "1"], "policy.lr=VALUE or prm.lr=VALUE"),
        (["train"], "the configuration is missing"),
        (["help", "trian"], "'train'"),
        (["from-megatron", "--model", "m", "-o", "x"], "one of --args and --args-file"),
    ],
)
def test_a_usage_error_says_what_was_meant(arguments, hint, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["help"], "Commands:"),
        (["-h"], "Commands:"),
        (["help", "plan"], "--gpu-set"),
        (["plan", "--help"], "--gpu-set"),
        (["--version"], "megatron-prime "),
        (["completion", "bash"], "_MEGATRON_PRIME_COMPLETE=bash_complete"),
        (["completion", "zsh"], "#compdef megatron-prime"),
        (["completion", "fish"], "_MEGATRON_PRIME_COMPLETE=fish_complete"),
    ],
)
def test_help_version_and_completion_are_printed(arguments, text, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 0
    assert text in capsys.readouterr().out
