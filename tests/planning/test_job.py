"""Which models a run holds, where its servers are, and how its batch is cut."""

import pytest

from tests.support.plan_jobs import make_job


def test_roles_follow_from_the_configuration(tmp_path):
    assert set(make_job(tmp_path).shapes) == {"policy", "prm", "reference"}
    assert set(make_job(tmp_path, reference={"mode": "policy"}).shapes) == {"policy", "prm"}
    frozen = make_job(tmp_path, prm={"update_order": "none"})
    assert frozen.trained == ("policy",) and "prm" in frozen.shapes
    assert set(make_job(tmp_path, prm={"enabled": False}).shapes) == {"policy"}


@pytest.mark.parametrize(
    ("sglang", "colocated", "first"),
    [
        ({"num_servers": 8}, True, 0),
        ({"num_servers": 8, "colocated": False}, False, 8),
        ({"urls": ["http://a:1", "http://b:1"]}, False, 8),
        ({"num_servers": 1, "gpu_ids": [8]}, False, 8),
    ],
)
def test_servers_share_gpus_or_stand_beside(sglang, colocated, first, tmp_path):
    job = make_job(tmp_path, rollout={"engine": "sglang", "sglang": sglang})
    assert job.is_colocated == colocated
    assert job.engines.ranks[0][0] == first


def test_microbatches_of_a_minibatch(tmp_path):
    job = make_job(tmp_path, parallel={"tensor": 2})
    assert job.tokens == 1024 * (512 + 1536)
    assert job.microbatches("policy") == 1024 * 2048 // 4 // 4 // 16384


def test_processes_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(ValueError, match="6 processes are not a multiple of the 4"):
        _ = make_job(tmp_path, processes=6, parallel={"tensor": 4}).layout


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/config.json cannot be read"):
        make_job(tmp_path, prm={"path": tmp_path / "nowhere"})
