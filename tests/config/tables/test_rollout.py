import pytest
from pydantic import ValidationError

from megatron_prime.config.tables.rollout import SGLangConfig


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
