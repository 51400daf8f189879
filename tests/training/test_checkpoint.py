"""Resume is exact; a save is whole or absent whenever its process dies; layouts may change in between."""

import checkpoint_worker
import pytest
import torch
from distributed_runner import run_distributed
from layout_worker import hf_weights, whole_tensors
from tiny_models import save_tiny_model
from training_batches import ragged_batch

MODELS = {"policy": "qwen2 tied", "prm": "qwen3"}
TWO = (("tp2", "fp32"), ("pp2", "fp32"), ("dp2", "fp32"), ("dp2", "bf16"))
ONE = (("one", "fp32"),)
PAIRS_OF_TWO = (("tp2", "pp2"), ("pp2", "dp2"))
PAIRS_TO_ONE = (("tp2", "one"), ("dp2", "one"))
MOMENTS = ("between the roles", "before run.json")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoint")
    models = {role: save_tiny_model(name, root / role) for role, name in MODELS.items()}
    folders = {role: root / role for role in MODELS}
    return root, models, folders, {role: ragged_batch(model) for role, model in models.items()}


@pytest.fixture(scope="module")
def results(setting):
    root, _, folders, batches = setting
    for moment in MOMENTS:
        with pytest.raises(AssertionError, match=r"exit codes \[-9\]"):
            run_distributed(checkpoint_worker.die_while_saving, 1, moment, folders, batches, root)
    two = run_distributed(checkpoint_worker.two_processes, 2, TWO, PAIRS_OF_TWO, folders, batches, root)
    one = run_distributed(
        checkpoint_worker.one_process, 1, ONE, PAIRS_TO_ONE, MOMENTS, folders, batches, root
    )
    reports = {"faults": [of_rank["faults"] for of_rank in two], "death": one[0]["death"]}
    for part in ("same", "elsewhere"):
        reports[part] = {
            key: [of_rank[part][key] for of_rank in by_rank]
            for by_rank in (one, two)
            for key in by_rank[0][part]
        }
    return reports


@pytest.mark.parametrize(("layout", "dtype"), ONE + TWO)
def test_three_and_three_updates_are_six_bit_for_bit(layout, dtype, results):
    for report in results["same"][layout, dtype]:
        assert report["loaded alike"]
        assert report["continued alike"]


@pytest.mark.parametrize(("layout", "dtype"), ONE + TWO)
def test_the_rest_of_the_run_comes_back_on_every_rank(layout, dtype, results):
    for report in results["same"][layout, dtype]:
        assert report["newest of nothing"] is None
        assert report["path"].name == "step_00000003"
        state = report["state"]
        assert (state.step_index, state.prompt_stream, state.seed) == (3, checkpoint_worker.STREAM, 8)
        assert report["draws alike"]


@pytest.mark.parametrize(("layout", "dtype"), ONE + TWO)
def test_skipped_updates_are_counted_on_after_a_resume(layout, dtype, results):
    for report in results["same"][layout, dtype]:
        unbroken, resumed = report["guards"]
        # Six updates of three rows each, and a skipped one of the policy before and after both halves.
        assert unbroken == resumed
        assert unbroken["num_skipped"] == 4
        assert unbroken["in_a_row"] == {"policy": 1, "prm": 0}


@pytest.mark.parametrize(("saved_by", "layout"), PAIRS_OF_TWO + PAIRS_TO_ONE)
@pytest.mark.parametrize("role", MODELS)
def test_another_layout_takes_over(role, saved_by, layout, results, setting):
    """Weights are equal at once; moments and schedule are, if three more updates end where they ended at home."""
    like = hf_weights(setting[1][role])
    home, away = results["same"][saved_by, "fp32"], results["elsewhere"][saved_by, layout]
    saved = whole_tensors([of_rank["saved"][role] for of_rank in home], like)
    unbroken = whole_tensors([of_rank["unbroken"][role] for of_rank in home], like)
    loaded = whole_tensors([of_rank["loaded"][role] for of_rank in away], like)
    continued = whole_tensors([of_rank["continued"][role] for of_rank in away], like)
    for name, tensor in saved.items():
        assert torch.equal(loaded[name], tensor), name
        assert not torch.equal(unbroken[name], tensor), name
        torch.testing.assert_close(continued[name], unbroken[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("saved_by", "layout"), PAIRS_OF_TWO + PAIRS_TO_ONE)
def test_weights_can_be_loaded_without_an_optimizer(saved_by, layout, results, setting):
    like = hf_weights(setting[1]["prm"])
    saved = whole_tensors([of_rank["saved"]["prm"] for of_rank in results["same"][saved_by, "fp32"]], like)
    away = results["elsewhere"][saved_by, layout]
    for name, tensor in whole_tensors([of_rank["alone"] for of_rank in away], like).items():
        assert torch.equal(tensor, saved[name]), name


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_save_that_was_killed_does_not_exist(moment, results):
    report = results["death"][moment]
    assert report["found"] == [".step_00000006.partial", "step_00000003"]
    assert report["step"] == 3
    assert report["alike"]
    assert report["left"] == ["step_00000003", "step_00000006"], "the next save clears the rest away"


def test_only_the_last_checkpoints_are_kept(results):
    for report in results["faults"]:
        assert report["kept"] == ["step_00000002", "step_00000003"]
        assert report["newest"] == "step_00000003"


def test_a_role_that_was_not_saved_is_named(results):
    for report in results["faults"]:
        for key in ("missing role", "weights of no role"):
            kind, message = report[key]
            assert kind == "ValueError"
            assert "no prm" in message


@pytest.mark.parametrize("damage", checkpoint_worker.DAMAGES)
def test_a_damaged_checkpoint_is_refused_on_every_rank(damage, results):
    for report in results["faults"]:
        kind, message = report[damage]
        assert kind == "ValueError", (kind, message)
        assert damage in message, "the folder is named"


def test_a_folder_that_cannot_be_written_is_an_error_on_every_rank(results):
    for report in results["faults"]:
        assert report["no folder"][0] in ("NotADirectoryError", "FileExistsError")


def test_a_full_disk_is_told_on_every_rank_and_costs_nothing_that_was_saved(results):
    for report in results["faults"]:
        kind, message = report["no room"]["fault"]
        assert kind == "OSError"
        assert "could not be written" in message and "start again" in message
        assert report["no room"]["kept"], "the checkpoint before it is still the newest"
        assert report["no room"]["next"] is None, "with room again, the same save succeeds"
