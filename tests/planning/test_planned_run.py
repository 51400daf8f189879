"""Checks the models of a run, the placement of its servers, and the numbers of its microbatches."""

import pytest

from tests.support.planned_runs import make_run


def test_roles_follow_from_the_configuration(tmp_path):
    assert set(make_run(tmp_path).shapes) == {"policy", "prm", "reference"}
    assert set(make_run(tmp_path, reference={"mode": "policy"}).shapes) == {"policy", "prm"}
    frozen = make_run(tmp_path, prm={"update_order": "none"})
    assert frozen.trained == ("policy",) and "prm" in frozen.shapes
    assert set(make_run(tmp_path, prm={"enabled": False}).shapes) == {"policy"}


@pytest.mark.parametrize(
    ("sglang", "colocated", "first"),
    [
        ({"num_servers": 8}, True, 0),
        ({"num_servers": 8, "colocated": False}, False, 8),
        ({"urls": ["http://a:1", "http://b:1"]}, False, 8),
        ({"num_servers": 1, "gpu_ids": [8]}, False, 8),
    ],
)
def test_servers_share_the_training_gpus_or_follow_them(sglang, colocated, first, tmp_path):
    run = make_run(tmp_path, rollout={"engine": "sglang", "sglang": sglang})
    assert run.is_colocated == colocated
    assert run.engines.ranks[0][0] == first


def test_microbatches_per_minibatch(tmp_path):
    run = make_run(tmp_path, parallel={"tensor": 2})
    assert run.tokens == 1024 * (512 + 1536)
    assert run.microbatches("policy") == 1024 * 2048 // 4 // 4 // 16384


def test_an_indivisible_number_of_processes_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="6 processes are not a multiple of the 4"):
        _ = make_run(tmp_path, processes=6, parallel={"tensor": 4}).layout


def test_the_error_names_a_folder_without_a_config(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        make_run(tmp_path, prm={"path": tmp_path / "nowhere"})
