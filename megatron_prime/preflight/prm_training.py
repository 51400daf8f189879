"""Check the responses that `train-prm` trains on, and that a PRM meets the reference that it was trained with."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_prime.algorithm.registry import PRM_OBJECTIVES
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.identity import model_identity
from megatron_prime.hf.prm_record import FILE, PRMRecord
from megatron_prime.hf.shape import fewest_positions, read_shape

if TYPE_CHECKING:
    from megatron_prime.data.responses.held_out import SavedGroups
    from megatron_prime.data.responses.text import TextReader


def response_faults(config: PrimeConfig) -> Iterator[str]:
    """Yield why the files of prm_training.responses cannot be opened."""
    paths = config.prm_training.responses
    if not paths:
        yield (
            "prm_training.responses is empty: name run_dirs with a rollout log, files of such a log, or .jsonl files "
            "of responses with outcomes"
        )
    for path in paths:
        if not path.exists():
            yield f"prm_training.responses: {path} does not exist"


def offline_lines(config: PrimeConfig, arithmetic: BatchArithmetic) -> list[str]:
    """Return the batch arithmetic of `train-prm`, which has no sampling."""
    settings = config.prm_training
    num_groups = settings.num_steps * settings.prompts_per_step
    return [
        arithmetic.lines()[0],
        f"batch       {settings.prompts_per_step} groups of responses per step, 1 update per step",
        f"microbatch  up to {config.trainer.max_tokens_per_microbatch} packed tokens per process",
        f"run         {settings.num_steps} steps x {settings.prompts_per_step} = {num_groups} groups",
    ]


def read_saved_groups(config: PrimeConfig) -> "SavedGroups":
    """Return the responses that `train-prm` trains on and those that it holds out.

    Raises:
        ValueError: a file is missing, damaged or of another model, or nothing is left to train on.
    """
    # pyarrow takes a while to import.
    from megatron_prime.data.responses.held_out import read_groups
    from megatron_prime.data.responses.logged import GroupReader, is_log, response_files

    settings, model = config.prm_training, config.model.path
    files = response_files(settings.responses)
    most_positions = fewest_positions(config.model_paths("train_prm").values())
    longest = min(config.trainer.max_tokens_per_microbatch, most_positions)
    texts = None if all(map(is_log, files)) else _text_reader(config)
    reader = GroupReader(model_identity(model)["tokenizer"], read_shape(model).vocab_size, longest, texts)
    groups = read_groups(files, reader, settings.held_out_fraction, config.seed)
    objective = PRM_OBJECTIVES.load(config.prm.loss)
    if objective.requires.group and not groups.num_mixed:
        raise ValueError(
            f"prm.loss = {config.prm.loss!r} compares the right and the wrong responses to a prompt, but no group of "
            "prm_training.responses has both: take prm.loss = 'ce'"
        )
    if groups.mean_outcome in (0.0, 1.0):
        raise ValueError(
            f"all responses of prm_training.responses have the outcome {groups.mean_outcome:g}, from which a PRM "
            "cannot learn what distinguishes right ones: name files with right and wrong responses"
        )
    return groups


def _text_reader(config: PrimeConfig) -> "TextReader":
    """Return the reader of responses as text."""
    # transformers takes a while to import.
    from megatron_prime.data.responses.text import TextReader
    from megatron_prime.data.tokenizer import load_tokenizer
    from megatron_prime.environments.episodes import tools_of

    return TextReader(config, load_tokenizer(config.model.path), tools_of(config))


def reference_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield why the reference of a command is not the one that its PRM was trained with.

    A PRM without a record is taken as it is: it may be of another program. A critic needs no reference, and may start
    from the weights of any PRM.
    """
    paths = config.model_paths(command)
    if "prm" not in paths or (command == "train" and config.prm.is_critic):
        return
    try:
        record = PRMRecord.read(paths["prm"])
        if record is None:
            return
        follows_policy = command == "train" and config.reference.mode == "policy"
        reference = config.model.path if follows_policy else paths["reference"]
        # A missing folder is reported as one, and has no weights to compare.
        if not reference.is_dir() or record.is_reference(reference):
            return
    except ModelFolderError as error:
        yield str(error)
        return
    used = "reference.mode = 'policy'" if follows_policy else f"the reference {reference}"
    advice = f"Set reference.path = '{record.reference}'"
    if not Path(record.reference).is_dir():
        advice = "That folder does not exist here: set reference.path to where the model is now"
    yield (
        f"prm.path = {paths['prm']}: this PRM was trained with the reference {record.reference} ({FILE}), and {used} "
        f"has other weights: the log-ratio of the two would be no process reward. {advice}"
    )


def other_scores(config: PrimeConfig) -> Iterator[str]:
    """Yield a warning for each setting that gives a trained PRM other scores than in its training."""
    try:
        record = PRMRecord.read(config.prm_path) if config.prm.enabled else None
    except ModelFolderError:
        return  # reported as a fault
    for name in ("beta", "scored_tokens"):
        mine = getattr(config.prm, name)
        trained = mine if record is None else getattr(record, name)
        if mine != trained:
            yield f"prm.{name} = {mine}: the PRM in {config.prm_path} was trained with {trained} ({FILE})"


def record_of(config: PrimeConfig) -> PRMRecord:
    """Return the record of the PRM that `train-prm` or `train` trains.

    Raises:
        ValueError: the reference cannot be read.
    """
    reference = config.reference_path
    if not reference.is_dir():
        raise ValueError(
            f"reference.path: {reference} does not exist, and {FILE} has hashes of it: set reference.path to where the "
            "reference of the PRM is now"
        )
    return PRMRecord(
        reference=str(reference.absolute()),
        reference_identity=model_identity(reference),
        loss=config.prm.loss,
        beta=config.prm.beta,
        scored_tokens=config.prm.scored_tokens,
    )
