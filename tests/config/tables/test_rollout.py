import pytest
from pydantic import ValidationError

from megatron_prime.config.tables.rollout import RolloutConfig, SGLangConfig


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_servers": 2, "tensor": 2, "gpu_ids": [0, 1, 2]}, r"num_servers \* tensor = 4 different GPUs"),
        ({"num_servers": 2, "gpu_ids": [1, 1]}, "2 different GPUs"),
        ({"tensor": 3, "expert": 2}, "expert = 2 must divide tensor = 3"),
        ({"urls": ["node:30000"]}, "must begin with http"),
        ({"urls": ["http://a", "http://a"]}, "names a server twice"),
        (
            {"urls": ["http://user:SECRET@a"]},
            r"'http://\*\*\*@a' in urls must have neither credentials nor a query",
        ),
        ({"urls": ["http://a/?key=SECRET"]}, r"'http://a/\?\*\*\*' in urls must have neither.*api_key_file"),
    ],
)
def test_inconsistent_server_settings_are_refused(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        SGLangConfig(**fields)
    SGLangConfig(num_servers=2, tensor=2, gpu_ids=(4, 5, 6, 7), urls=("http://a", "https://b"))


STALE = {
    # fields besides those of servers -> why they are refused
    (
        ("max_staleness", 2),
        ("engine", "local"),
    ): "max_staleness = 2 keeps sampling .* engine = 'local' samples in the",
    (("max_staleness", 0), ("partial", "continue")): "needs max_staleness of 2 or more: with 0,",
    (("max_staleness", 1), ("partial", "continue")): "needs max_staleness of 2 or more: with 1,",
    (
        ("max_staleness", 2),
        ("partial", "continue"),
        ("routing_replay", True),
    ): "no longer those that sampled them",
    (("max_staleness", 1), ("engine", "local")): None,
    (("max_staleness", 2),): None,
    (("max_staleness", 2), ("routing_replay", True)): None,
    (("max_staleness", 4), ("partial", "continue")): None,
}


@pytest.mark.parametrize("case", STALE)
def test_what_can_be_sampled_ahead(case):
    fields = {"engine": "sglang"} | dict(case)
    fields["sglang"] = {"routing_replay": fields.pop("routing_replay", False)}
    if STALE[case] is None:
        assert RolloutConfig(**fields).mixes_versions == (fields.get("partial") == "continue")
        return
    with pytest.raises(ValidationError, match=STALE[case]):
        RolloutConfig(**fields)
