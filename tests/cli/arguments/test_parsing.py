"""The argument parser accepts valid command lines in any order, and answers others in one line with exit code 2."""

import pytest

from megatron_prime.cli.arguments import Options, parse


def parsed(*arguments: str) -> Options:
    options = parse(arguments)
    assert isinstance(options, Options)
    return options


def test_overrides_come_after_the_file_and_flags_after_them():
    options = parsed("plan", "run.toml", "policy.lr=1", "--gpu", "B200", "--gpu-set", "a=1")
    assert (options.overrides, options.gpu, options.gpu_set) == (["policy.lr=1"], "B200", ("a=1",))
    options = parsed("convert", "run.toml", "--output", "x", "--role", "prm", "--workers", "3")
    assert (options.role, options.workers, options.dtype, options.compare_logits) == ("prm", 3, "keep", False)


@pytest.mark.parametrize(
    "arguments",
    [
        "plan run.toml policy.lr=1 seed=2 --gpu B200",
        "plan --gpu B200 run.toml policy.lr=1 seed=2",
        "plan policy.lr=1 run.toml --gpu=B200 seed=2",
        "plan policy.lr=1 --gpu B200 seed=2 run.toml",
        "plan -q policy.lr=1 seed=2 run.toml --gpu B200",
    ],
)
def test_options_file_and_overrides_stand_in_any_order(arguments):
    options = parsed(*arguments.split())
    assert (str(options.config), options.overrides) == ("run.toml", ["policy.lr=1", "seed=2"])
    assert (options.gpu, options.quiet) == ("B200", "-q" in arguments.split())


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ("--dry-run run.toml seed=1", "-"),
        ("run.toml --dry-run seed=1", "-"),
        ("run.toml seed=1 --dry-run", "-"),
        ("--dry-run out run.toml seed=1", "out"),
        ("--dry-run=out seed=1 run.toml", "out"),
    ],
)
def test_the_folder_of_a_dry_run_may_be_left_out_in_any_place(arguments, folder):
    options = parsed("train", *arguments.split())
    assert (str(options.config), options.overrides, options.dry_run) == ("run.toml", ["seed=1"], folder)


def test_a_file_whose_name_has_an_equals_sign_is_no_override(tmp_path):
    file = tmp_path / "lr=1.toml"
    file.touch()
    options = parsed("check", str(file), "seed=1")
    assert (options.config, options.overrides) == (file, ["seed=1"])


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("", "name a command: quickstart, train, sft, eval, "),
        ("fly run.toml", "no such command 'fly' (see megatron-prime --help)"),
        ("trian run.toml", "did you mean 'train'?"),
        ("chekc run.toml", "did you mean 'check'?"),
        ("evaluate run.toml", "did you mean 'eval'?"),
        ("resume run.toml", "did you mean 'train'?"),
        ("export run.toml", "did you mean 'convert'?"),
        ("run.toml", "name a command before 'run.toml', such as megatron-prime train run.toml"),
        ("run.toml train", "name a command before 'run.toml'"),
        ("help trian", "did you mean 'train'?"),
        ("quickstart run.toml", "writes its own configuration"),
        ("train", "the configuration is missing: name a TOML file"),
        ("train policy.lr=1", "the configuration is missing: name a TOML file"),
        ("train --config run.toml", "name the configuration file without an option"),
        ("train -c run.toml", "name the configuration file without an option"),
        ("plan run.toml --gpu-st a=1", "--gpu-set"),
        ("train run.toml --dryrun", "--dry-run"),
        ("train run.toml --policy.lr=1e-6", "policy.lr=VALUE"),
        ("train run.toml --policy.lr 1e-6", "policy.lr=VALUE"),
        ("train run.toml -policy.lr=1e-6", "no option -policy.lr: settings are written without dashes"),
        ("train run.toml --actor.lr=1e-6", "policy.lr=VALUE"),
        ("train run.toml --max-response-length=9", "rollout.max_response_tokens=VALUE"),
        ("train run.toml --learning_rate 1", "policy.lr=VALUE or prm.lr=VALUE"),
        ("train run.toml --nonsense", "no such option '--nonsense'"),
        ("convert run.toml", "missing option '--output'"),
        ("convert run.toml --output x --dtype int8", "'int8' is not one of 'keep', 'fp32', 'bf16', 'fp16'"),
        ("plan run.toml --gpus many", "'many' is not a valid integer"),
        ("plan run.toml --gpu", "--gpu' requires an argument"),
        ("completion tcsh", "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        ("from-megatron --model m -o x", "name one of --args and --args-file"),
    ],
)
def test_a_usage_error_is_one_line_that_says_what_was_meant(arguments, hint, capsys):
    assert parse(arguments.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("megatron-prime: ") and hint.lower() in line.lower()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("help", "Prepare and check:"),
        ("-h", "Prepare and check:"),
        ("help plan", "--gpu-set"),
        ("plan --help", "--gpu-set"),
        ("--version", "megatron-prime "),
        ("completion bash", "_MEGATRON_PRIME_COMPLETE=bash_complete"),
        ("completion zsh", "#compdef megatron-prime"),
        ("completion fish", "_MEGATRON_PRIME_COMPLETE=fish_complete"),
    ],
)
def test_help_version_and_completion_are_printed(arguments, text, capsys):
    assert parse(arguments.split()) == 0
    assert text in capsys.readouterr().out
