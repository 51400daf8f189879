"""Each example, with as few layers as its layout can have, passes a rehearsal of its first rank."""

import pytest

from benchmarks.planning.rehearsal import EXAMPLES, MODELS, PROMPTS, rehearse_example
from megatron_prime.config.loading import load_config


def test_every_example_has_a_model():
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == set(MODELS)


@pytest.mark.slow
@pytest.mark.parametrize("example", MODELS)
def test_an_example_has_no_fault(example):
    parallel = load_config(EXAMPLES / f"{example}.toml", []).parallel
    thin = MODELS[example] | {"num_hidden_layers": parallel.pipeline * parallel.virtual_pipeline}
    row, found = rehearse_example(example, ["parallel.stage_layers=auto"], thin, ranks="0")
    assert found == []
    assert row[:3] == (example, row[1], 1) and row[3] == 4 * PROMPTS.get(example, 8)
