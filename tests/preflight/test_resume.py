"""A run is resumed with its own models and verifiers, or refused."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_prime.config import load_config
from megatron_prime.preflight.resume import IDENTITY, has_identity, identity_of
from tests.preflight.workspace import check, faults_of, write_model

RUN_DIR = Path("runs/a")


def save_identity(*overrides):
    (RUN_DIR / IDENTITY).write_text(json.dumps(identity_of(load_config(Path("run.toml"), overrides))))


@pytest.fixture
def started(workspace):
    """A run with a checkpoint, and other models beside it."""
    checkpoint = RUN_DIR / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    save_identity("reward.verifier=exact_match")
    (checkpoint / "run.json").write_text("{}")
    shutil.copytree("model", "moved")
    write_model(Path("wider"), hidden_size=64)
    write_model(Path("trained"))
    weights = Path("trained/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    write_model(Path("other_tokens"))
    Path("other_tokens/tokenizer.json").write_text("{ }")
    write_model(Path("llama"), model_type="llama")
    return workspace


REFUSED = {
    "model.path=trained": "model.path = trained: weights of the policy are not those of model",
    "model.path=wider": "model.path = wider: config.json",
    "model.path=other_tokens": "model.path = other_tokens: tokenizer of the policy are not",
    "model.path=llama": "model.path = llama: config.json",
    "prm.path=trained": "prm.path = trained: weights of the prm are not",
    "reference.path=trained": "reference.path = trained: weights of the reference are not",
    "reward.verifier=math": "reward.verifier = 'math': the run in runs/a was started with 'exact_match'",
    "reward.verifier=http://localhost:1/": "reward.verifier = 'reward server /'",
    "reward.verifier=auto": "reward.verifier = 'auto'",
}


@pytest.mark.parametrize("override", REFUSED)
@pytest.mark.usefixtures("started")
def test_another_model_or_verifier_is_refused_and_no_file_changes(override):
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    faults = faults_of("reward.verifier=exact_match", override)
    assert any(fault.startswith(REFUSED[override]) for fault in faults), faults
    assert any("start anew in another run_dir" in fault for fault in faults)
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


ACCEPTED = [
    "model.path=moved",
    "prm.path=moved",
    "reference.path=model",
    "prm.enabled=false",
    "policy.lr=0.1",
]


@pytest.mark.parametrize("override", ACCEPTED)
@pytest.mark.usefixtures("started")
def test_the_same_model_elsewhere_and_other_settings_are_accepted(override):
    check("reward.verifier=exact_match", override)


@pytest.mark.usefixtures("started")
def test_a_reward_server_may_move_and_change_no_path():
    save_identity("reward.verifier=http://one:80/verify")
    check("reward.verifier=http://two:81/verify")
    assert faults_of("reward.verifier=http://one:80/other")[0].startswith(
        "reward.verifier = 'reward server /other'"
    )


@pytest.mark.usefixtures("started")
def test_an_identity_of_another_version_is_not_compared():
    saved = json.loads((RUN_DIR / IDENTITY).read_text())
    (RUN_DIR / IDENTITY).write_text(json.dumps({**saved, "format": 9, "verifier": "gone"}))
    (fault,) = faults_of("reward.verifier=exact_match")
    assert fault.startswith("runs/a/identity.json was made by another version of megatron_prime (format 9")
    del saved["format"]
    (RUN_DIR / IDENTITY).write_text(json.dumps(saved))
    check("reward.verifier=exact_match")


@pytest.mark.parametrize("content", [None, "", "[]", "{}", json.dumps({"models": 3})])
@pytest.mark.usefixtures("started")
def test_a_run_without_an_identity_or_without_a_checkpoint_accepts_everything(content):
    if content is None:
        (RUN_DIR / "checkpoints/step_00000001/run.json").unlink()
    else:
        (RUN_DIR / "identity.json").write_text(content)
        assert not has_identity(RUN_DIR)
    check("model.path=trained")
