"""The arguments of all commands, by click. Imports nothing else that is slow: `--help` must not wait for pydantic.

Options, the configuration file and overrides may stand in any order.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError
from click.shell_completion import CompletionItem, get_completion_class

from megatron_prime import __version__

NAME = "megatron-prime"
USAGE_ERROR = 2
FILE_OPTIONS = ("c", "config", "config_file", "config_name", "config_path", "f", "file")
"""Options that name the configuration file in other systems."""
COMMANDS_ELSEWHERE = {
    **dict.fromkeys(("fit", "ppo", "resume", "rl", "run", "start"), "train"),
    **dict.fromkeys(("finetune", "fine-tune"), "sft"),
    **dict.fromkeys(("test", "validate", "lint"), "check"),
    **dict.fromkeys(("estimate", "memory", "layouts"), "plan"),
    **dict.fromkeys(("env", "info", "diagnose"), "doctor"),
    **dict.fromkeys(("export", "merge", "to-hf"), "convert"),
}
"""Names that other systems give to commands, with ours."""
SHELLS = ("bash", "zsh", "fish")
SETTINGS = {"help_option_names": ["-h", "--help"]}


class Options(SimpleNamespace):
    """The parsed arguments of one command: its name as `command`, and its options as further attributes."""

    command: str
    config: Path
    overrides: list[str]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Satisfy type checkers, which cannot know the options of a command."""
        raise AttributeError(name)


def parse(arguments: Sequence[str] | None = None) -> Options | int:
    """Return the parsed arguments, by default those of this process.

    Returns:
        The arguments, or the exit code if nothing is left to do: 0 after --help and the like, USAGE_ERROR after a
        line on stderr that says what is wrong.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        result = top.main(args=words, prog_name=NAME, standalone_mode=False)
    except click.UsageError as error:
        # Pydantic takes a while to import.
        from megatron_prime.config.redaction import redact

        command = error.ctx.command_path if error.ctx else NAME
        text = redact(_explain(error, words).rstrip("."))
        print(f"{NAME}: {text[0].lower()}{text[1:]} (see {command} --help)", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    return result if isinstance(result, Options) else result or 0


def _explain(error: click.UsageError, words: Sequence[str]) -> str:
    """Return the message of an error, or a better one for what users of other systems write."""
    if isinstance(error, NoArgsIsHelpError):
        return f"name a command: {', '.join(top.commands)}"
    if isinstance(error, click.NoSuchCommand):
        return _explain_command(error)
    if not isinstance(error, click.NoSuchOption) or error.possibilities:
        # click writes an error over several lines if it lists many possibilities.
        return " ".join(error.format_message().split())
    # Of `-policy.lr=1`, the error names the first letter alone.
    option = next(word for word in words if word.startswith(error.option_name)).partition("=")[0]
    name = option.lstrip("-").replace("-", "_")
    if name in FILE_OPTIONS:
        return f"no option {option}: name the configuration file without an option"
    from megatron_prime.config.faults import key_suggestions  # pydantic is slow to import

    keys = key_suggestions(name)
    if not keys:
        return error.format_message()
    ways = " or ".join(f"{key}=VALUE" for key in keys)
    return f"no option {option}: settings are written without dashes: {ways}"


def _explain_command(error: click.NoSuchCommand) -> str:
    name = error.command_name
    if _is_override(name) or Path(name).suffix == ".toml":
        return f"name a command before {name!r}, such as {NAME} train {name}"
    meant = COMMANDS_ELSEWHERE.get(name)
    return f"no such command {name!r}. Did you mean {meant!r}?" if meant else error.format_message()


def _complete_word(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Offer keys of the configuration, and files for everything else."""
    from megatron_prime.config.faults import dotted_keys
    from megatron_prime.config.run import PrimeConfig

    keys = [
        CompletionItem(f"{key}=") for key in dotted_keys(PrimeConfig) if word and f"{key}=".startswith(word)
    ]
    return keys or [CompletionItem(word, type="file")]


def _is_override(word: str) -> bool:
    return "=" in word and not Path(word).is_file()


def _options(command: str, values: dict[str, Any]) -> Options:
    """Separate the configuration file from overrides and return all arguments of a command."""
    words = list(values.pop("words"))
    # `--dry-run` takes an optional folder: a file or an override behind it was not meant as one.
    folder = values.get("dry_run")
    if folder and folder != "-" and (_is_override(folder) or Path(folder).suffix == ".toml"):
        words.insert(0, folder)
        values["dry_run"] = "-"
    index = next((index for index, word in enumerate(words) if not _is_override(word)), None)
    file = None if index is None else Path(words.pop(index))
    if file is None and command not in ("doctor", "from-megatron", "verify"):
        raise click.UsageError("the configuration is missing: name a TOML file", click.get_current_context())
    if command == "from-megatron" and file is not None:
        words.insert(0, str(file))
    return Options(command=command, config=file, overrides=words, **values)


@click.group(context_settings=SETTINGS, help="PRIME (arXiv 2502.01456) on Megatron-core.")
@click.version_option(__version__, message="megatron-prime %(version)s")
def top() -> None:
    """Hold all commands."""


def _command(name: str, text: str, *options: click.Parameter, metavar: str = "CONFIG [KEY=VALUE]...") -> None:
    """Add a command that takes a configuration, overrides and these options."""

    def callback(**values: Any) -> Options:  # noqa: ANN401
        return _options(name, values)

    words = click.Argument(["words"], nargs=-1, metavar=metavar, shell_complete=_complete_word)
    quiet = click.Option(["-q", "--quiet"], is_flag=True, help="print warnings and errors alone")
    top.add_command(
        click.Command(
            name,
            callback=callback,
            params=[words, *options, quiet],
            help=f"{text[0].upper()}{text[1:]}.",
            short_help=text,
        )
    )


def _option(*names: str, **settings: Any) -> click.Option:  # noqa: ANN401
    return click.Option(list(names), **settings)


_command(
    "train",
    "run PRIME; continues automatically from the newest checkpoint of run_dir",
    _option(
        "--dry-run",
        is_flag=False,
        flag_value="-",
        metavar="[FOLDER]",
        help="start nothing: print the arithmetic, the process map and the commands (and write them to FOLDER)",
    ),
)
_command("sft", "fine-tune the policy on demonstrations and write an HF checkpoint")
_command("eval", "sample on the held-out prompts and benchmarks from model.path and report accuracy")
_command("eval-prm", "evaluate the PRM of prm.path against reference.path: best of N, ProcessBench, pairs")
_command(
    "check",
    "find every fault of a configuration and of its data, and print the batch arithmetic",
    _option(
        "--for",
        "target",
        type=click.Choice(("train", "sft", "eval", "eval-prm")),
        help="the command to check; by default train, or without data.train the one whose data are named",
    ),
)
_command(
    "plan",
    "estimate a run without a GPU: memory, time, weight sync, layouts that fit",
    _option("--gpu", default="H100-80G", help="H100-80G, H200, A100-80G, A100-40G, B200"),
    _option("--gpus", type=int, help="GPUs to train on; default parallel.num_processes"),
    _option("--gpu-set", multiple=True, metavar="FIGURE=VALUE", help="change a property of the GPU"),
    *(
        _option(f"--{name}", type=float, help=text)
        for name, text in (
            ("prompt-tokens", "mean length of a prompt; default half of the longest"),
            ("response-tokens", "mean length of a response; default half of the longest"),
            ("mfu", "fraction of the peak FLOPs that training reaches; default 0.4"),
            ("decode-efficiency", "fraction of the memory bandwidth that decoding reaches; default 0.6"),
            ("overhead-gib", "memory of a process outside of models, in GiB; default 3"),
        )
    ),
    _option("--json", help="write the plan to this file too"),
)
_command(
    "doctor",
    "check environment, devices, file systems, engine and the ranks' network, and say how to fix faults",
    _option("--timeout-s", type=float, default=30.0, help="deadline for the ranks to connect"),
    metavar="[CONFIG] [KEY=VALUE]...",
)
_command(
    "verify",
    "try the verifiers of a run on responses: the verdict and the reason of each",
    _option(
        "--file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="rows with response, answer and possibly the expected reward, source and ability; default data.train",
    ),
    _option("--response", metavar="TEXT", help="one response, to --answer"),
    _option("--answer", metavar="TEXT", help="the ground truth of --response"),
    _option("--source", default="", help="data source of --response, for reward.routes"),
    _option("--ability", default="", help="ability of --response, for reward.routes"),
    _option(
        "--rows", type=click.IntRange(1), help="rows of each file; default all of --file, 100 of data.train"
    ),
    _option("--json", help="write the verdicts to this file too, one line each"),
    metavar="[CONFIG] [KEY=VALUE]...",
)
_command(
    "convert",
    "write a model of a training checkpoint as an HF checkpoint",
    _option("--role", type=click.Choice(("policy", "prm")), default="policy"),
    _option(
        "--checkpoint",
        type=click.Path(path_type=Path),
        help="default: the newest complete one of run_dir",
    ),
    _option(
        "--output",
        type=click.Path(path_type=Path),
        required=True,
        help="folder to write; must not exist",
    ),
    _option("--dtype", type=click.Choice(("keep", "fp32", "bf16", "fp16")), default="keep"),
    _option("--workers", type=int, default=1, help="number of processes; each holds one tensor in memory"),
    _option("--compare-logits", is_flag=True, help="run both models on a short sequence, in memory"),
)
_command(
    "from-megatron",
    "write a configuration from the arguments of an existing Megatron-LM setup",
    _option("--args", metavar="TEXT", help='the arguments as one string: --args="--lr 1e-6 ..."'),
    _option(
        "--args-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="a shell script (read, not run) or a YAML file",
    ),
    _option(
        "--model",
        type=click.Path(path_type=Path),
        required=True,
        help="HF checkpoint of the model: model.path",
    ),
    _option("-o", "--output", type=click.Path(path_type=Path), required=True, help="TOML file to write"),
    _option(
        "--skip-refused",
        is_flag=True,
        help="leave out arguments that are refused instead of stopping",
    ),
    metavar="[KEY=VALUE]...",
)


def _one_source(callback: Callable[..., Options]) -> Callable[..., Options]:
    """Require exactly one of --args and --args-file."""

    def checked(**values: Any) -> Options:  # noqa: ANN401
        if (values["args"] is None) == (values["args_file"] is None):
            raise click.UsageError("name one of --args and --args-file", click.get_current_context())
        return callback(**values)

    return checked


_from_megatron = top.commands["from-megatron"]
assert _from_megatron.callback is not None
_from_megatron.callback = _one_source(_from_megatron.callback)


@top.command("help", short_help="show the options of a command")
@click.argument("name", required=False, metavar="[COMMAND]")
@click.pass_context
def _help(context: click.Context, name: str | None) -> None:
    """Show the options of a command, or all commands."""
    assert context.parent is not None
    if name is None:
        click.echo(context.parent.get_help())
        return
    _, command, _ = top.resolve_command(context.parent, [name])
    assert command is not None
    with click.Context(command, info_name=name, parent=context.parent) as inner:
        click.echo(command.get_help(inner))


@top.command("completion", short_help="print a script that completes commands, options and keys in a shell")
@click.argument("shell", type=click.Choice(SHELLS))
def _completion(shell: str) -> None:
    """Print a completion script; for bash: eval "$(megatron-prime completion bash)"."""
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(top, {}, NAME, "_MEGATRON_PRIME_COMPLETE")
    # click's source() for bash starts bash to learn its version; the text alone needs no shell.
    sys.stdout.write(script.source_template % script.source_vars() + "\n")
