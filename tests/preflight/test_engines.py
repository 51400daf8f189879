"""The environment of SGLang servers is needed only by runs that start some."""

from tests.preflight.workspace import check, faults_of


def test_a_missing_engine_environment_is_noticed_where_it_is_needed(workspace):
    [fault] = faults_of("rollout.engine=sglang")
    assert "make sglang" in fault and "rollout.sglang.python" in fault
    check("rollout.engine=sglang", 'rollout.sglang.urls=["http://node7:30000"]')
    (workspace / "python").touch()
    check("rollout.engine=sglang", "rollout.sglang.python=python")
