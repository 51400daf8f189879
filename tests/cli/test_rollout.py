"""Sampling without training writes what the first training step would have sampled."""

import signal

from megatron_prime.observability.rollout_log import RolloutFile, logged_steps
from tests.support.toy_runs import Started, Toy, finish, rollouts

SAMPLED = (
    "prompt_index",
    "sample",
    "response",
    "response_token_ids",
    "outcome_reward",
    "reason",
    "filter",
)


def test_the_rollouts_of_a_step_are_those_of_training(toy: Toy):
    code, output = toy.facts["rollout"]
    assert code == 0, output
    assert "step 1 of 1: " in output
    folder = toy.run_dir("sampled")
    (rows,), trained = rollouts(folder).values(), rollouts(toy.run_dir("single"))[1]
    assert [[row[name] for name in SAMPLED] for row in rows] == [
        [row[name] for name in SAMPLED] for row in trained
    ]
    assert all(row["advantages"] is None for row in rows)
    with RolloutFile(logged_steps(folder / "rollouts")[1]) as file:
        assert file.info.kind == "rollout"
        assert file.info.num_groups == file.info.num_groups_sampled


def test_a_run_dir_of_another_command_is_refused(toy: Toy):
    refused = finish(toy.folder, "rollout", "run.toml", "run_dir=single")
    assert refused.returncode == 2
    assert "run_dir = single holds metrics.jsonl of an earlier command" in refused.stderr


def test_ctrl_c_leaves_whole_files(toy: Toy, tmp_path):
    with Started(toy.folder, "rollout", "run.toml", f"run_dir={tmp_path}", "--steps", "500") as started:
        started.wait_until(lambda: len(logged_steps(tmp_path / "rollouts")) >= 2)
        started.process.send_signal(signal.SIGINT)
        assert started.all_gone(), started.output()
        assert started.process.returncode == 128 + signal.SIGINT, started.output()
    steps = logged_steps(tmp_path / "rollouts")
    assert list(steps) == list(range(1, len(steps) + 1))
    assert set(steps.values()) == set((tmp_path / "rollouts").iterdir())
    for path in steps.values():
        with RolloutFile(path) as file:
            assert file.info.num_groups == file.info.num_groups_sampled
