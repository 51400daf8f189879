"""All methods of decoding generate the same tokens."""

import pytest

from benchmarks.peers import decoding, task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoding")
    task.write(path, decoding.workload_of("0.1M"))
    return path


def test_the_embedded_engine_decodes_what_transformers_does(folder):
    prompts = decoding.prompts_of(3, 253)
    methods = {
        name: (method, lambda: 1.0)
        for name, method in {
            "embedded": decoding._embedded(folder / "model"),
            "dynamic": decoding._transformers(folder / "model", None),
            "static": decoding._transformers(folder / "model", "static"),
        }.items()
    }
    found = list(decoding._timed(methods, prompts, 24))
    assert [record["method"] for record in found] == list(methods)
    assert all(record["equal"] == 1 and record["tokens"] == 72 for record in found)
