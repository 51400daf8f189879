"""Responses to train on are checked, and a trained PRM is refused with another reference than its own."""

from pathlib import Path

import pytest

from megatron_prime.config import load_config
from megatron_prime.hf.prm_record import FILE
from megatron_prime.observability.rollout_log import FileInfo, write_rollouts
from megatron_prime.preflight.prm_training import other_scores, read_saved_groups, record_of
from tests.preflight.workspace import check, faults_of, write_model
from tests.support.logged_rollouts import logged_response

RESPONSES = "prm_training.responses=['log.parquet']"


def write_log(*outcomes: float) -> None:
    rows = [logged_response(0, sample, outcome_reward=outcome) for sample, outcome in enumerate(outcomes)]
    write_rollouts(Path("log.parquet"), FileInfo(1), rows)


def test_responses_must_be_named_and_exist(workspace):
    assert faults_of(command="train_prm") == (
        "prm_training.responses is empty: name run_dirs with a rollout log, files of such a log, or .jsonl files of "
        "responses with outcomes",
    )
    assert faults_of(RESPONSES, command="train_prm") == (
        "prm_training.responses: log.parquet does not exist",
    )
    write_log(0, 1)
    check(RESPONSES, command="train_prm")


@pytest.mark.parametrize(
    ("override", "processes", "fault"),
    [
        ("prm.loss=nothing", 1, "prm.loss = 'nothing'"),
        (
            "prm_training.prompts_per_step=1",
            2,
            "prm_training.prompts_per_step = 1 is less than 2 data-parallel",
        ),
        ("prm_training.output=model", 1, "model exists already: remove it, or set prm_training.output"),
        (
            "prm_training.load_balance_coef=0.1",
            1,
            "prm_training.load_balance_coef = 0.1: the model has no experts",
        ),
    ],
)
def test_what_training_would_refuse_is_refused(workspace, override, processes, fault):
    write_log(0, 1)
    (found,) = faults_of(RESPONSES, override, command="train_prm", processes=processes)
    assert fault in found


def test_a_step_has_one_update(workspace):
    with pytest.raises(ValueError, match="num_minibatches and num_epochs must be 1"):
        load_config(Path("run.toml"), ["prm_training.num_epochs=2"])


def test_a_comparison_needs_right_and_wrong_responses(workspace):
    write_log(1, 1)
    config = load_config(Path("run.toml"), [RESPONSES, "prm_training.held_out_fraction=0", "prm.loss=dpo"])
    with pytest.raises(ValueError, match=r"prm\.loss = 'dpo' compares .* no group"):
        read_saved_groups(config)
    write_log(1, 0)
    assert len(read_saved_groups(config).train) == 1


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_right_and_wrong_responses_are_needed(workspace, outcome):
    write_log(outcome, outcome)
    with pytest.raises(ValueError, match=f"have the outcome {outcome:g}, from which a PRM"):
        read_saved_groups(load_config(Path("run.toml"), [RESPONSES, "prm_training.held_out_fraction=0"]))


def test_a_response_that_the_models_have_no_positions_for_is_left_out(workspace):
    rows = [logged_response(0, sample, num_tokens=tokens) for sample, tokens in enumerate((3, 60, 61))]
    write_rollouts(Path("log.parquet"), FileInfo(1), rows)
    write_model(workspace / "model", max_position_embeddings=63)
    groups = read_saved_groups(load_config(Path("run.toml"), [RESPONSES, "prm_training.held_out_fraction=0"]))
    assert groups.table.num_responses == 2
    assert groups.notes[-1] == "left out: 1 responses longer than 63 tokens with their prompt"


@pytest.fixture
def trained(workspace) -> Path:
    """A PRM that was trained with model/ as its reference, started from there."""
    folder = write_model(workspace / "prm", num_hidden_layers=3)
    config = load_config(Path("run.toml"), ["prm.path=model", "prm.loss=dpo", "prm.beta=0.2"])
    record = record_of(config)
    assert (record.loss, record.beta, record.scored_tokens) == ("dpo", 0.2, "all")
    record.write(folder)
    return folder


@pytest.mark.parametrize("command", ["train", "train_prm", "evaluate_prm", "serve_prm"])
def test_a_trained_prm_needs_its_reference(trained, command):
    write_log(0, 1)
    servers = "rollout.sglang.urls=['http://a:1', 'http://b:2']"
    needed = ["prm.path=prm", RESPONSES, "prm_evaluation.responses=['log.parquet']", servers]
    check(*needed, "reference.path=model", command=command)
    write_model(Path("other"), num_hidden_layers=4)
    (fault,) = faults_of(*needed, "reference.path=other", command=command)
    assert "this PRM was trained with the reference" in fault
    assert fault.endswith(f"Set reference.path = '{Path('model').absolute()}'")


def test_a_reference_that_was_moved_or_is_missing(trained):
    base = Path("model").rename("moved")
    moved = "model.path=moved"
    check(moved, "prm.path=prm", "reference.path=moved")
    (fault,) = faults_of(moved, "prm.path=prm")
    assert fault.endswith("That folder does not exist here: set reference.path to where the model is now")
    (fault,) = faults_of(moved, "prm.path=prm", "reference.path=model")
    assert "reference.path = model: no such folder" in fault
    base.rename("model")


def test_the_default_reference_of_training_is_refused_for_a_trained_prm(trained):
    (fault,) = faults_of("prm.path=prm")
    assert "the reference prm has other weights" in fault
    (trained / FILE).unlink()
    check("prm.path=prm")


def test_a_critic_may_start_from_a_trained_prm_and_needs_no_reference(trained):
    gae = ["advantage.estimator=gae", "advantage.process_credit=td", "advantage.process_normalization=none"]
    check("prm.path=prm", "prm.loss=value", *gae)


def test_the_policy_may_be_the_reference_if_it_starts_as_the_prm_s(trained):
    follows = "reference.mode=policy"
    check("prm.path=prm", follows)
    write_model(Path("other"), num_hidden_layers=4)
    (fault,) = faults_of("prm.path=prm", follows, "model.path=other")
    assert "reference.mode = 'policy' has other weights" in fault


def test_a_damaged_record_is_named(trained):
    (trained / FILE).write_text("{")
    assert "implicit_prm.json cannot be read" in faults_of("prm.path=prm", "reference.path=model")[0]


def test_other_settings_than_those_of_the_training_are_questioned(trained):
    def doubts(*overrides: str) -> list[str]:
        return list(other_scores(load_config(Path("run.toml"), overrides)))

    assert doubts("prm.path=prm", "prm.beta=0.2") == []
    assert doubts("prm.path=prm", "prm.beta=0.2", "prm.enabled=false") == []
    beta, tokens = doubts("prm.path=prm", "prm.scored_tokens=policy")
    assert beta == "prm.beta = 0.05: the PRM in prm was trained with 0.2 (implicit_prm.json)"
    assert tokens.startswith("prm.scored_tokens = policy: ")
    assert doubts() == []
