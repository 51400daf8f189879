"""The versions of a response come back from its columns, also from logs that have none."""

from megatron_prime.observability.rollout_log.versions import logged_versions


def test_parts_begin_where_those_before_them_end():
    assert logged_versions({"version_ends": [3, 7], "versions": [4, 6]}) == ((4, 0, 3), (6, 3, 7))


def test_a_response_of_one_version_has_no_parts():
    assert logged_versions({"version_ends": None, "versions": None}) == ()
