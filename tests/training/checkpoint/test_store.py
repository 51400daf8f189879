"""Resuming is exact; an interrupted save leaves no checkpoint; the layout may change between attempts."""

import functools

import pytest
import torch
import torch.distributed.checkpoint
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_prime import __version__
from tests.support.distributed_runner import run_distributed
from tests.support.layout_worker import hf_weights, whole_tensors
from tests.support.tiny_models import SHALLOW, save_tiny_model
from tests.support.training_batches import ragged_batch
from tests.training.checkpoint import checkpoint_worker

MODELS = {"policy": "qwen2 tied", "prm": "qwen3"}
EXPERTS = {"experts policy": "qwen3 moe", "experts prm": "mixtral"}
# Shallow models have two layers instead of four, which layouts need that have several layers in a stage or four parts.
TWO = (
    ("tp2", "fp32"),
    ("pp2", "fp32"),
    ("pp2 vpp2", "fp32"),
    ("pp2 uneven", "fp32"),
    ("shallow dp2", "fp32"),
    ("shallow dp2", "bf16"),
    ("experts ep2", "fp32"),
    ("shallow experts etp2", "fp32"),
    ("experts pp2 vpp2", "fp32"),
)
ONE = (("shallow one", "fp32"),)
FOUR = (("shallow tp2 pp2", "fp32"),)
EVERY = ONE + TWO + FOUR
PAIRS_OF_TWO = (
    ("tp2", "pp2 vpp2"),
    ("pp2 vpp2", "cp2"),
    ("shallow dp2", "shallow tp2"),
    ("pp2", "pp2 uneven"),
    ("experts pp2 vpp2", "experts pp2 uneven"),
    ("experts ep2", "experts pp2 vpp2"),
    ("experts pp2 vpp2", "experts tp2+sp etp2"),
    ("shallow experts etp2", "shallow experts tp2+sp ep2"),
)
PAIR_OF_FOUR = ("shallow tp2 pp2", "shallow cp2 dp2")
"""A pair of layouts between which tensor, pipeline, context and data parallelism all change."""
PAIRS_TO_ONE = (
    ("tp2", "one"),
    ("pp2 uneven", "one"),
    ("shallow dp2", "shallow one"),
    ("experts ep2", "experts one"),
)
PAIRS = (*PAIRS_OF_TWO, *PAIRS_TO_ONE, PAIR_OF_FOUR)
VOCAB_SIZE = 300
"""Number of tokens in the vocabulary of the tiny models."""
MOMENTS = ("between the roles", "before run.json", "in the background")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoint")
    names = MODELS | EXPERTS
    names |= {SHALLOW + role: SHALLOW + name for role, name in names.items()}
    models = {role: save_tiny_model(name, root / role) for role, name in names.items()}
    folders = {role: root / role for role in models}
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
    four = run_distributed(checkpoint_worker.four_processes, 4, PAIR_OF_FOUR, folders, batches, root)
    reports = {"faults": [of_rank["faults"] for of_rank in two], "death": one[0]["death"]}
    for part in ("same", "elsewhere"):
        reports[part] = {
            key: [of_rank[part][key] for of_rank in by_rank]
            for by_rank in (one, two, four)
            for key in by_rank[0][part]
        }
    return reports


@pytest.mark.parametrize(("layout", "dtype"), EVERY)
def test_resuming_after_two_updates_equals_four_updates_bit_for_bit(layout, dtype, results):
    for report in results["same"][layout, dtype]:
        assert report["loaded alike"]
        assert report["continued alike"]


@pytest.mark.parametrize(("layout", "dtype"), EVERY)
def test_the_run_state_is_restored_on_every_rank(layout, dtype, results):
    for report in results["same"][layout, dtype]:
        assert report["newest of nothing"] is None
        assert report["path"].name == "step_00000003"
        assert report["faults"] == []
        state = report["state"]
        assert (state.step_index, state.prompt_stream, state.seed) == (3, checkpoint_worker.STREAM, 8)
        assert state.collector == checkpoint_worker.PACE
        assert report["draws alike"]


@pytest.mark.parametrize(("layout", "dtype"), EVERY)
def test_the_count_of_skipped_updates_continues_after_a_resume(layout, dtype, results):
    for report in results["same"][layout, dtype]:
        unbroken, resumed = report["guards"]
        # Four updates, and a skipped one of the policy before and after both halves.
        assert unbroken == resumed
        assert unbroken["num_skipped"] == 4
        assert unbroken["in_a_row"] == {"policy": 1, "prm": 0}


@pytest.mark.parametrize(("saved_by", "layout"), PAIRS)
@pytest.mark.parametrize("role", MODELS)
def test_another_layout_resumes_training(role, saved_by, layout, results, setting):
    """Weights equal those in the first layout; so do they after two more updates, which need moments and schedule."""
    like = hf_weights(checkpoint_worker.of_models(layout, setting[1])[role])
    home, away = results["same"][saved_by, "fp32"], results["elsewhere"][saved_by, layout]
    saved = whole_tensors([of_rank["saved"][role] for of_rank in home], like)
    unbroken = whole_tensors([of_rank["unbroken"][role] for of_rank in home], like)
    loaded = whole_tensors([of_rank["loaded"][role] for of_rank in away], like)
    continued = whole_tensors([of_rank["continued"][role] for of_rank in away], like)
    for name, tensor in saved.items():
        assert torch.equal(loaded[name], tensor), name
        assert not torch.equal(unbroken[name], tensor), name
        torch.testing.assert_close(continued[name], unbroken[name], rtol=0, atol=1e-5)


@functools.cache  # several layouts load the same checkpoint
def whole_tensors_of(folder):
    """Return the tensors of a role's checkpoint as torch reads them, without Megatron and its layouts."""
    reader = FileSystemReader(folder)
    tensors = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in reader.read_metadata().state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata)
    }
    torch.distributed.checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return {
        # The vocabulary is padded to a multiple of the tensor-parallel size, which differs.
        name: tensor[:VOCAB_SIZE]
        if name.endswith(("word_embeddings.weight", "output_layer.weight"))
        else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(("saved_by", "layout"), PAIRS)
@pytest.mark.parametrize("role", MODELS)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_weights_and_moments_are_preserved_in_another_layout_bit_for_bit(role, saved_by, layout, results):
    """The second layout saves the same full tensors right after loading."""
    saved, again = (
        whole_tensors_of(path / role) for path in results["elsewhere"][saved_by, layout][0]["saved"]
    )
    assert saved.keys() == again.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, again[name]), name
    assert len(saved) > len([name for name in saved if "exp_avg" in name]) > 4


@pytest.mark.parametrize(("saved_by", "layout"), PAIRS)
def test_weights_can_be_loaded_without_an_optimizer(saved_by, layout, results, setting):
    like = hf_weights(checkpoint_worker.of_models(layout, setting[1])["prm"])
    saved = whole_tensors([of_rank["saved"]["prm"] for of_rank in results["same"][saved_by, "fp32"]], like)
    away = results["elsewhere"][saved_by, layout]
    for name, tensor in whole_tensors([of_rank["alone"] for of_rank in away], like).items():
        assert torch.equal(tensor, saved[name]), name


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_save_that_was_killed_leaves_no_checkpoint(moment, results):
    report = results["death"][moment]
    assert report["found"] == [".step_00000006.attempt0.partial", "step_00000003"], (
        "no writer may outlive the killed process"
    )
    assert report["tidied"] == ["step_00000003"]
    assert report["step"] == 3
    assert report["alike"]
    assert report["left"] == ["step_00000003", "step_00000006"], "the next save removes the leftovers"


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
def test_every_damaged_file_is_detected_and_named(damage, results):
    for report in results["faults"]:
        found = report["faults of damaged"][damage]
        assert found and found == results["faults"][0]["faults of damaged"][damage]
        assert any(
            name in " ".join(found)
            for name in (".distcp", "metadata.json", "rng.pt", "run.json", "manifest.json")
        )


def test_a_damaged_checkpoint_is_set_aside_and_not_removed(results):
    for report in results["faults"]:
        sound = report["sound"]
        assert sound["before"]
        kind, message = sound["stop"]
        assert kind == "ValueError"
        assert "step_00000003 is damaged: policy/__" in message and "another checksum" in message
        assert sound["found"] == "step_00000002"
        (warning,) = sound["warnings"]
        assert "going back to step_00000002" in warning and ".distcp" in warning
        assert sound["aside"]
        assert sound["saved again"]


@pytest.mark.parametrize("lost", checkpoint_worker.LOST)
def test_a_folder_that_lacks_parts_is_named_and_set_aside_and_blocks_no_save(lost, results):
    for report in results["faults"]:
        wedge = report["sound"]["wedges"][checkpoint_worker.LOST.index(lost)]
        assert wedge["stop"][0] == "ValueError" and "step_00000004 is damaged" in wedge["stop"][1]
        assert wedge["found"] == "step_00000003"
        (warning,) = wedge["warnings"]
        assert "step_00000004 is damaged" in warning and "going back to step_00000003" in warning
        assert lost.split()[0] in warning
        assert wedge["aside"]
        assert wedge["saved"] == "step_00000004"


@pytest.mark.parametrize("lost", checkpoint_worker.LOST)
def test_only_a_folder_that_was_never_complete_lets_a_run_begin_anew(lost, results):
    for report in results["faults"]:
        wedge = report["sound"]["wedges"][checkpoint_worker.LOST.index(lost)]
        if {"run.json", "manifest.json"} <= set(lost.split()):
            assert wedge["alone"] is None
            warning, found = wedge["alone warnings"]
            assert "step_00000004 is damaged" in warning and "begins at its first step" in warning
            assert found is None
        else:
            kind, message = wedge["alone"]
            assert kind == "ValueError" and "no checkpoint is sound" in message


def test_a_run_without_a_sound_checkpoint_does_not_start_from_scratch(results):
    for report in results["faults"]:
        kind, message = report["sound"]["none"]
        assert kind == "ValueError"
        assert "no checkpoint is sound" in message
        assert report["sound"]["left"] == ["step_00000002", "step_00000003"]


def test_the_best_is_kept_besides_the_last_and_ties_go_to_the_newer(results):
    for report in results["faults"]:
        assert report["best"] == [[1], [2], [2, 3], [2, 4], [5]]


def test_a_full_disk_loses_no_saved_checkpoint(results):
    for report in results["faults"]:
        for outcome in report["full disk"]:
            if outcome is None:
                pytest.skip("file systems cannot be mounted here")
            kind, message = outcome["fault"]
            assert kind == "OSError", message
            assert "could not be written" in message
            assert outcome["sound"]
            assert outcome["left"] == ["step_00000001"], "the incomplete files are removed"
            assert outcome["next"] is None


@pytest.mark.parametrize(
    "damage", sorted(set(checkpoint_worker.DAMAGES) - set(checkpoint_worker.ONLY_IN_THE_MANIFEST))
)
def test_a_damaged_checkpoint_is_refused_on_every_rank(damage, results):
    for report in results["faults"]:
        kind, message = report[damage]
        assert kind == "ValueError", (kind, message)
        assert damage in message, "the folder is named"


def test_a_checkpoint_that_cannot_be_loaded_is_never_to_be_removed(results):
    for report in results["faults"]:
        for damage in ("random states cut short", "role removed", "shard removed"):
            _, message = report[damage]
            assert f"It was written by megatron_prime {__version__}, and is left as it is" in message
            assert "move it away to resume from the checkpoint before" in message
        _, message = report["random states of another version"]
        assert "may be undamaged" in message and "fractions.Fraction" in message
        assert f"It was written by megatron_prime {__version__}, and is left as it is" in message


def test_a_folder_that_cannot_be_written_is_an_error_on_every_rank(results):
    for report in results["faults"]:
        assert report["no folder"][0] in ("NotADirectoryError", "FileExistsError")


def test_a_failed_disk_reservation_is_an_error_on_every_rank_and_loses_no_checkpoint(results):
    for report in results["faults"]:
        kind, message = report["no room"]["fault"]
        assert kind == "OSError"
        assert "could not be written" in message and "start again" in message
        assert report["no room"]["kept"], "the checkpoint before it is still the newest"
        assert report["no room"]["next"] is None, "with free space, the same save succeeds"
