"""The environment of SGLang servers is needed only by runs that start some, keys only by those that attach."""

import pytest

from tests.preflight.workspace import check, faults_of, write_model


def test_a_missing_engine_environment_is_noticed_where_it_is_needed(workspace):
    [fault] = faults_of("rollout.engine=sglang")
    assert "make sglang" in fault and "rollout.sglang.python" in fault
    check("rollout.engine=sglang", 'rollout.sglang.urls=["http://node7:30000"]')
    (workspace / "python").touch()
    check("rollout.engine=sglang", "rollout.sglang.python=python")


SHARED, OWN = "share GPUs with it", None
PLACES = {
    # overrides besides servers that sample ahead -> what the fault says
    (): SHARED,
    ("rollout.sglang.gpu_ids=[1]",): OWN,
    ("rollout.sglang.gpu_ids=[1, 0]", "rollout.sglang.num_servers=2"): SHARED,
    ("rollout.sglang.gpu_ids=[1]", "rollout.sglang.colocated=true"): SHARED,
    ("rollout.sglang.colocated=false",): OWN,
    ('rollout.sglang.urls=["http://node7:30000"]',): OWN,
    ('rollout.sglang.urls=["http://node7:30000"]', "rollout.sglang.colocated=true"): SHARED,
    ("platform.device=cpu",): OWN,
    ("rollout.max_staleness=0",): OWN,
    ("rollout.engine=local",): OWN,
}


# With the embedded engine, two steps are refused without a look at places.
@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (place, steps)
        for place in PLACES
        for steps in (1, 2)
        if steps == 1 or "rollout.engine=local" not in place
    ],
)
def test_servers_that_share_gpus_with_the_trainer_cannot_sample_while_it_trains(workspace, overrides, steps):
    (workspace / "python").touch()
    ahead = ("rollout.engine=sglang", "rollout.sglang.python=python", f"rollout.max_staleness={steps}")
    settings = (*ahead, "platform.device=cuda", *overrides)
    if PLACES[overrides] is None:
        check(*settings)
    else:
        [fault] = faults_of(*settings)
        assert f"rollout.max_staleness = {steps}" in fault and PLACES[overrides] in fault


ATTACHED = ("rollout.engine=sglang", 'rollout.sglang.urls=["http://node7:30000"]')


def test_a_bad_key_file_is_noticed_where_it_is_used(workspace):
    named = (*ATTACHED, "rollout.sglang.api_key_file=keys")
    [fault] = faults_of(*named)
    assert fault == "rollout.sglang.api_key_file = keys can't be read: No such file or directory"
    (workspace / "keys").write_text("secret")
    (workspace / "keys").chmod(0o644)
    [fault] = faults_of(*named)
    assert "open to other users" in fault and "secret" not in fault
    (workspace / "keys").chmod(0o600)
    check(*named)
    (workspace / "keys").write_text("")
    [fault] = faults_of(*named)
    assert "has 0 lines with keys" in fault
    check("rollout.engine=local", "rollout.sglang.api_key_file=keys")


def test_a_model_whose_positions_servers_would_rotate_otherwise_is_refused(workspace):
    write_model(workspace / "model", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    [fault] = faults_of(*ATTACHED)
    assert fault.startswith("model: SGLang applies dynamic rope scaling to sequences of every length")
    assert fault in faults_of(*ATTACHED, command="serve_prm")
    check("rollout.engine=local")
