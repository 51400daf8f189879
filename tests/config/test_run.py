from pathlib import Path

import pytest
from pydantic import ValidationError

from megatron_prime.config.faults import dotted_keys, section_of
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.rollout import SGLangConfig

MINIMAL = {"run_dir": "runs/a", "model": {"path": "m"}, "trainer": {"num_steps": 1, "prompts_per_step": 6}}


def build(**sections: dict) -> PrimeConfig:
    data = {name: dict(value) if isinstance(value, dict) else value for name, value in MINIMAL.items()}
    for name, values in sections.items():
        data[name] = {**data.get(name, {}), **values}
    return PrimeConfig.model_validate(data)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"parallel": {"sequence_parallel": True}}, "sequence_parallel needs tensor > 1"),
        ({"parallel": {"tensor": 2, "num_processes": 3}}, "not a multiple of tensor"),
        ({"parallel": {"virtual_pipeline": 2}}, "virtual_pipeline = 2 needs pipeline > 1"),
        ({"parallel": {"expert": 2, "num_processes": 3}}, "not a multiple of pipeline"),
        ({"filter": {"accuracy_min": 0.9}}, "accuracy_min = 0.9 exceeds accuracy_max = 0.8"),
        ({"policy": {"min_lr": 1.0}}, "min_lr = 1.0 exceeds lr = 5e-07"),
        ({"rollout": {"temperature": 0.5}, "reference": {"mode": "policy"}}, "set the temperature to 1"),
        ({"advantage": {"estimator": "my module"}}, "neither a name nor an import path"),
        ({"prm": {"loss": "module:"}}, "neither a name nor an import path"),
        (
            {"policy": {"kl_coef": 0.1}, "rollout": {"temperature": 0.5}},
            "kl_coef = 0.1 compares the policy, whose log-probs are taken at rollout.temperature = 0.5",
        ),
        (
            {"policy": {"lr_warmup_steps": 1}},
            "policy.lr_warmup_steps = 1 must be less than trainer.num_steps = 1",
        ),
        (
            {"prm": {"source": "policy", "lr": 1e-3}},
            "prm.lr = 0.001 has no effect with prm.source = 'policy', which has no PRM: leave it out",
        ),
        (
            {"prm": {"source": "policy", "update_order": "before"}},
            "prm.update_order = 'before' has no effect with prm.source = 'policy'",
        ),
        ({"prm": {"source": "policy", "path": "m"}}, "prm.path = 'm' has no effect"),
        ({"prm": {"source": "policy", "loss": "dpo"}}, "prm.loss = 'dpo' has no effect"),
        (
            {"prm": {"source": "policy"}, "reference": {"mode": "policy"}},
            "compares the policy with itself, and every process reward would be 0",
        ),
        (
            {"prm": {"source": "policy"}, "rollout": {"temperature": 0.5}},
            "prm.source = 'policy' takes the policy's log-probs at rollout.temperature = 0.5",
        ),
        (
            {"prm": {"source": "policy"}, "memory": {"offload_prm": True}},
            "memory.offload_prm = true, but prm.source = 'policy'",
        ),
        (
            {"advantage": {"process_warmup_steps": 1}},
            "advantage.process_warmup_steps = 1 is no less than trainer.num_steps = 1: process rewards would never",
        ),
        ({"prm": {"lr_warmup_steps": 2}}, "prm.lr_warmup_steps = 2 must be less than trainer.num_steps = 1"),
        (
            {"sft": {"lr_warmup_steps": 9, "num_steps": 9}},
            "lr_warmup_steps = 9 must be less than num_steps = 9",
        ),
        (
            {"trainer": {"logprob_kernel": "triton"}, "platform": {"device": "cpu"}},
            "trainer.logprob_kernel = 'triton' needs a GPU, but platform.device = 'cpu'",
        ),
        ({"policy": {"num_minibatches": 5}}, "policy.num_minibatches = 5 does not divide the batch"),
        ({"prm": {"num_minibatches": 5}}, "prm.num_minibatches = 5 does not divide the batch"),
        ({"rollout": {"max_response_tokens": 20000}}, "21024 tokens, more than"),
        ({"memory": {"recompute": {"num_layers": 2}}}, "belong to granularity = 'full', but it is 'none'"),
        (
            {"memory": {"recompute": {"granularity": "selective", "method": "block"}}},
            "belong to granularity = 'full', but it is 'selective'",
        ),
        (
            {"memory": {"recompute": {"granularity": "selective", "modules": []}}},
            "recomputes nothing with modules = ",
        ),
        (
            {"fp8": {"policy": "tensorwise"}, "platform": {"device": "cpu", "dtype": "bf16"}},
            "fp8.policy = 'tensorwise' needs Transformer Engine on GPUs, but platform.device = 'cpu'",
        ),
        (
            {"fp8": {"prm": "blockwise"}, "platform": {"layers": "torch", "dtype": "bf16"}},
            "fp8.prm = 'blockwise' needs Transformer Engine on GPUs",
        ),
        (
            {"fp8": {"policy": "tensorwise"}},
            "fp8.policy = 'tensorwise' needs platform.dtype = 'bf16', not 'fp32'",
        ),
        (
            {
                "fp8": {"prm": "tensorwise"},
                "platform": {"dtype": "bf16"},
                "reference": {"mode": "policy"},
            },
            "process rewards would be rounding noise",
        ),
        (
            {
                "fp8": {"policy": "delayed"},
                "platform": {"dtype": "bf16"},
                "memory": {"recompute": {"granularity": "selective", "modules": ["layernorm"]}},
            },
            "cannot be recomputed with fp8.policy = 'delayed'",
        ),
        (
            {
                "fp8": {"prm": "tensorwise", "primary_weights": True},
                "platform": {"dtype": "bf16"},
                "memory": {"offload_prm": True},
            },
            "fp8.primary_weights cannot be offloaded",
        ),
        (
            {"overlap": {"grad_reduce": True, "param_gather": True}, "memory": {"offload_prm": True}},
            "memory.offload_prm frees them before",
        ),
        (
            {
                "environment": {"name": "guess_number"},
                "rollout": {"engine": "sglang", "sglang": {"routing_replay": True}},
            },
            "records the experts of one request",
        ),
        ({"overlap": {"tensor_parallel": True}}, "needs parallel.tensor > 1 and parallel.sequence_parallel"),
        (
            {"memory": {"offload_reference": True}, "reference": {"mode": "policy"}},
            "offload_reference = true, but this run holds no reference",
        ),
        (
            {"memory": {"offload_reference": True}, "prm": {"enabled": False}},
            "offload_reference = true, but this run holds no reference",
        ),
        (
            {"memory": {"offload_prm": True}, "prm": {"enabled": False}},
            "offload_prm = true, but prm.enabled = false",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sections, message):
    with pytest.raises(ValidationError, match=message):
        build(**sections)


def test_faults_across_sections_come_together():
    with pytest.raises(ValidationError) as caught:
        build(prm={"lr_warmup_steps": 2}, policy={"num_minibatches": 5})
    assert len(str(caught.value.errors()[0]["ctx"]["error"]).splitlines()) == 2


def test_a_config_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        build().seed = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_every_key_is_documented():
    undocumented = [
        path
        for path in dotted_keys(PrimeConfig)
        if (found := _section_and_name(path))[1] not in found[0].documentation()
    ]
    assert undocumented == []


def _section_and_name(path: str):
    section = PrimeConfig
    *tables, name = path.split(".")
    for table in tables:
        section = section_of(section.model_fields[table].annotation)
    return section, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_servers": 2, "tensor": 2, "gpu_ids": (0, 1, 2)}, r"num_servers \* tensor = 4 different GPUs"),
        ({"num_servers": 2, "gpu_ids": (1, 1)}, "different GPUs"),
        ({"urls": ("node7:30000",)}, "must begin with http"),
        ({"urls": ("http://a:1", "http://a:1")}, "twice"),
        ({"urls": ("http://a:1",), "weight_transport": "ipc"}, "own node alone.*and not http://a:1"),
        ({"quantization": "fp8", "weight_transport": "disk"}, "'shards' or 'ipc'"),
        ({"quantization": "fp8", "weight_full_check_every": 1}, "needs servers on a CPU"),
    ],
)
def test_inconsistent_server_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SGLangConfig(**settings)


@pytest.mark.parametrize(
    ("sections", "reads"),
    [
        ({}, False),
        ({"reward": {"verifier": "auto"}}, False),
        ({"reward": {"verifier": "module:function"}}, True),
        ({"reward": {"verifier": "judge"}}, True),
        ({"reward": {"verifier": "auto", "routes": {"math": "math", "x": "module:function"}}}, True),
        ({"reward": {"verifier": "http://localhost:1/verify"}}, True),
        ({"reward": {"verifier": "http://localhost:1/verify", "http": {"fields": ["source"]}}}, False),
        ({"environment": {"name": "guess_number"}}, True),
    ],
)
def test_rows_are_read_whole_where_a_verifier_or_an_environment_may_use_them(sections, reads):
    assert build(**sections).reads_rows is reads


def test_a_run_whose_policy_is_its_prm_loads_a_reference_and_no_prm():
    config = build(prm={"source": "policy"})
    assert config.model_paths("train") == {"policy": Path("m"), "reference": Path("m")}
    assert (config.prm.has_model, config.prm.is_trained) == (False, False)


@pytest.mark.parametrize(
    ("max_staleness", "correction", "expected"),
    [
        (0, "auto", "none"),
        (1, "auto", "token"),
        (1, "none", "none"),
        (1, "sequence", "sequence"),
        (0, "token", "token"),
    ],
)
def test_stale_batches_are_corrected_unless_the_user_says_how(max_staleness, correction, expected):
    config = build(rollout={"max_staleness": max_staleness}, policy={"correction": correction})
    assert config.corrected_policy == config.policy.model_copy(update={"correction": expected})
    said = [
        line
        for line in config.notes()
        if "policy.correction = 'token', ratios from 0 to 2 (truncate)" in line
    ]
    assert len(said) == (correction == "auto" and expected == "token")
