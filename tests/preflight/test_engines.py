"""The environment of SGLang servers is needed only by runs that start some, keys only by those that attach."""

from tests.preflight.workspace import check, faults_of


def test_a_missing_engine_environment_is_noticed_where_it_is_needed(workspace):
    [fault] = faults_of("rollout.engine=sglang")
    assert "make sglang" in fault and "rollout.sglang.python" in fault
    check("rollout.engine=sglang", 'rollout.sglang.urls=["http://node7:30000"]')
    (workspace / "python").touch()
    check("rollout.engine=sglang", "rollout.sglang.python=python")


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
