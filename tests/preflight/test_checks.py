import json
from pathlib import Path

import pytest

from megatron_prime.config import ConfigError, load_config
from megatron_prime.preflight.checks import check_convert, check_run, sft_output

SHAPE = {
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 8192,
}


def write_model(folder: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    shape = {key: value for key, value in {**SHAPE, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def workspace(tmp_path, minimal_toml, monkeypatch) -> Path:
    """A folder in which the minimal file's run can start."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    minimal_toml.write_text(minimal_toml.read_text() + '[data]\ntrain = ["train.jsonl"]\n')
    return tmp_path


def check(*overrides: str, processes: int = 1, command: str = "train", **names):
    return check_run(load_config(Path("run.toml"), overrides), processes, command, **names)


def faults_of(*overrides: str, **kwargs) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check(*overrides, **kwargs)
    return caught.value.faults


def test_a_run_that_can_start_gives_its_arithmetic_and_writes_nothing(workspace):
    before = sorted(workspace.rglob("*"))
    arithmetic = check("parallel.tensor=2", processes=4, verifiers=("math",), model_types=("qwen2",))
    assert (arithmetic.data, arithmetic.responses_per_step) == (2, 16)
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "overrides", "fault"),
    [
        ({"num_attention_heads": 3}, ["parallel.tensor=2"], "does not divide num_attention_heads = 3"),
        ({"num_key_value_heads": 1}, ["parallel.tensor=2"], "does not divide num_key_value_heads = 1"),
        ({"intermediate_size": 63}, ["parallel.tensor=2"], "does not divide intermediate_size = 63"),
        ({"num_hidden_layers": 3}, ["parallel.pipeline=2"], "does not divide num_hidden_layers = 3"),
        ({"num_hidden_layers": None}, [], "config.json has no whole number num_hidden_layers"),
        (
            {"num_hidden_layers": 4},
            [
                "parallel.pipeline=2",
                "memory.recompute.granularity=full",
                "memory.recompute.num_layers=3",
            ],
            "memory.recompute.num_layers = 3 exceeds the 2 layers of a pipeline stage",
        ),
        ({"max_position_embeddings": 4095}, [], "= 4096 exceeds max_position_embeddings = 4095"),
        ({"model_type": "gpt2"}, [], "model_type 'gpt2'; known are llama, qwen2"),
    ],
)
def test_a_model_that_does_not_fit_the_layout_is_refused(workspace, changes, overrides, fault):
    write_model(workspace / "model", **changes)
    (line,) = faults_of(*overrides, processes=2, model_types=("qwen2", "llama"))
    assert line.startswith("model.path = model: ")
    assert fault in line


EXPERTS = {"model_type": "qwen3_moe", "num_experts": 6, "moe_intermediate_size": 30, "intermediate_size": 63}


@pytest.mark.parametrize(
    ("changes", "overrides", "fault"),
    [
        (
            {"num_hidden_layers": 6},
            ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
            "parallel.pipeline * virtual_pipeline = 4 does not divide num_hidden_layers = 6",
        ),
        ({}, ["parallel.expert=2"], "parallel.expert = 2, expert_tensor = 1: the model has no experts"),
        ({}, ["policy.load_balance_coef=0.1"], "policy.load_balance_coef = 0.1: the model has no experts"),
        (
            {"max_position_embeddings": 8192},
            [
                "rollout.engine=sglang",
                "rollout.sglang.urls=['http://a:1']",
                "rollout.sglang.routing_replay=true",
            ],
            "rollout.sglang.routing_replay = true: the model has no experts",
        ),
        (EXPERTS, ["parallel.expert=4"], "parallel.expert = 4 does not divide the number of experts = 6"),
        (EXPERTS, ["parallel.expert_tensor=4"], "does not divide moe_intermediate_size = 30"),
        (EXPERTS, ["parallel.tensor=2"], "needs parallel.sequence_parallel = true"),
    ],
)
def test_experts_and_chunks_that_do_not_fit_the_layout_are_refused(workspace, changes, overrides, fault):
    write_model(workspace / "model", **changes)
    (line,) = faults_of(*overrides, processes=4)
    assert line.startswith("model.path = model: ")
    assert fault in line


def test_experts_need_no_tensor_parallel_ffn_and_reuse_the_data_parallel_ranks(workspace):
    write_model(workspace / "model", **EXPERTS)
    layout = ["parallel.tensor=2", "parallel.sequence_parallel=true", "parallel.expert=2"]
    assert check(*layout, processes=4).data == 2
    assert faults_of(*layout, "parallel.expert_tensor=3", processes=2) == (
        "2 processes are not a multiple of parallel.pipeline * expert * expert_tensor = 1 * 2 * 3",
    )


def test_key_value_heads_default_to_the_attention_heads(workspace):
    write_model(workspace / "model", num_key_value_heads=None)
    check("parallel.tensor=4", processes=4)


def test_a_sequence_may_fill_every_position(workspace):
    write_model(workspace / "model", max_position_embeddings=4096)
    check()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "does not hold an object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no *.safetensors file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer (tokenizer.json, "),
    ],
)
def test_a_damaged_checkpoint_folder_is_named(workspace, damage, fault):
    damage(workspace / "model")
    (line,) = faults_of()
    assert line.startswith("model.path = model: ")
    assert fault in line


def test_each_distinct_model_that_training_loads_is_checked(workspace):
    write_model(workspace / "other", vocab_size=101)
    paths = ["prm.path=other", "reference.path=nowhere"]
    missing, vocabulary = faults_of(*paths)
    assert missing.startswith("reference.path = nowhere: no such folder")
    assert "vocab_size differs (model.path: 100, prm.path: 101)" in vocabulary
    check("data.evaluation=['train.jsonl']", *paths, command="evaluate")
    check("prm.enabled=false", *paths)


def test_models_that_are_not_loaded_are_not_checked(workspace):
    check("reference.path=nowhere", "reference.mode=policy")
    check("reference.path=model", "prm.path=model")
    check("prm.path=nowhere", "prm.enabled=false")
    check("prm.path=nowhere", "reference.path=model", "prm.enabled=false", "policy.kl_coef=0.1")


@pytest.mark.parametrize("key", ["reference.path", "prm.path"])
def test_a_kl_term_needs_the_reference_even_without_a_prm(workspace, key):
    (fault,) = faults_of(f"{key}=nowhere", "prm.enabled=false", "policy.kl_coef=0.1")
    assert fault.startswith(f"{key} = nowhere: no such folder")


@pytest.mark.parametrize(
    ("command", "key"), [("train", "data.train"), ("evaluate", "data.evaluation"), ("sft", "sft.data")]
)
def test_each_command_needs_its_data(workspace, command, key):
    assert faults_of(f"{key}=[]", command=command) == (
        f"{key} is empty: name at least one jsonl, parquet or csv file",
    )
    assert f"{key}: absent.jsonl does not exist" in faults_of(f"{key}=['absent.jsonl']", command=command)[0]
    check(f"{key}=['train.jsonl']", command=command)


def test_benchmarks_are_data_too_and_need_their_files_and_a_verifier_that_can(workspace):
    table = "evaluation.benchmarks"
    check("data.evaluation=[]", f"{table}.aime24.path=train.jsonl", command="evaluate")
    for command in ("evaluate", "train"):
        (fault,) = faults_of(f"{table}.aime24.path=absent.jsonl", command=command)
        assert fault.startswith(f"{table}.aime24.path: absent.jsonl does not exist")
        code = [f"{table}.mine.path=train.jsonl", f"{table}.mine.format=leetcode", "reward.verifier=math"]
        (fault,) = faults_of(*code, command=command)
        assert fault.startswith(
            f"{table}.mine asks for programs, which reward.verifier = 'math' does not judge"
        )
        check(*code[:2], "reward.verifier=auto", command=command)


def test_empty_files_and_folders_are_no_data(workspace):
    (workspace / "empty.jsonl").touch()
    faults = faults_of("data.evaluation=['empty.jsonl', 'model']")
    assert faults[0] == "data.evaluation: empty.jsonl is empty"
    assert faults[1].startswith("data.evaluation: model cannot be read")
    (fault,) = faults_of("data.chat_template_file=none.jinja")
    assert fault.startswith("data.chat_template_file = none.jinja does not exist")


def test_processes_must_divide_into_the_layout(workspace):
    assert faults_of("parallel.tensor=2", processes=3) == (
        "3 processes are not a multiple of parallel.tensor * pipeline * context = 2 * 1 * 1 = 2",
    )


def test_a_minibatch_must_reach_every_data_parallel_rank(workspace):
    (fault,) = faults_of("policy.num_minibatches=8", processes=4)
    assert "policy.num_minibatches = 8 leaves 2 responses a minibatch for 4 data-parallel ranks" in fault
    sft = ["sft.data=['train.jsonl']", "sft.batch_size=2"]
    assert faults_of(*sft, processes=4, command="sft") == (
        "sft.batch_size = 2 is less than 4 data-parallel ranks",
    )
    check(*sft, processes=2, command="sft")


def test_an_unknown_verifier_is_refused_where_one_is_used(workspace):
    names = {"verifiers": ("math", "exact_match")}
    assert faults_of("reward.verifier=maths", **names) == (
        "reward.verifier = 'maths': known are exact_match, math; a function is package.module:function, a reward "
        "server http://...",
    )
    check("sft.data=['train.jsonl']", "reward.verifier=maths", command="sft", **names)


def test_a_run_dir_below_a_file_is_refused(workspace):
    assert faults_of("run_dir=train.jsonl/x")[0].endswith("train.jsonl is not a folder")


def test_a_run_dir_that_may_not_be_written_is_refused(workspace, monkeypatch):
    # Root may write anywhere, so the system's answer is replaced rather than provoked.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert faults_of()[0].endswith("is not writable")


def test_all_faults_come_together(workspace):
    faults = faults_of(
        "model.path=x", "data.train=[]", "parallel.tensor=2", "reward.verifier=y", verifiers=()
    )
    assert len(faults) == 4


def test_an_sft_output_that_exists_is_refused_and_nothing_else_minds_it(workspace):
    data = "sft.data=['train.jsonl']"
    assert faults_of(data, "sft.output=model", command="sft") == (
        "model exists already: remove it, or set sft.output to another folder",
    )
    (workspace / "runs/a/sft").mkdir(parents=True)
    assert sft_output(load_config(Path("run.toml"))) == Path("runs/a/sft")
    assert faults_of(data, command="sft")[0].startswith("runs/a/sft exists already")
    check("sft.output=model")


def test_a_conversion_needs_a_checkpoint_a_model_and_a_new_folder(workspace):
    def faults(*overrides: str, role: str = "policy", checkpoint: Path | None = None, output: str = "new"):
        with pytest.raises(ConfigError) as caught:
            check_convert(load_config(Path("run.toml"), overrides), role, checkpoint, Path(output))
        return caught.value.faults

    assert faults()[0].startswith("runs/a/checkpoints holds no complete checkpoint")
    checkpoint = workspace / "runs/a/checkpoints/step_00000001"
    checkpoint.mkdir(parents=True)
    assert len(faults()) == 1
    (checkpoint / "run.json").write_text("{}")
    check_convert(load_config(Path("run.toml")), "policy", None, Path("new"))
    check_convert(load_config(Path("run.toml")), "policy", checkpoint, Path("new"))
    assert "has no run.json" in faults(checkpoint=workspace / "model")[0]
    assert faults(output="model")[0].startswith("--output model exists already")
    assert faults("prm.path=nowhere", role="prm")[0].startswith("prm.path = nowhere: no such folder")
    check_convert(load_config(Path("run.toml"), ["prm.path=nowhere"]), "policy", None, Path("new"))


def test_a_missing_engine_environment_is_noticed_where_it_is_needed(workspace):
    [fault] = faults_of("rollout.engine=sglang")
    assert "make sglang" in fault and "rollout.sglang.python" in fault
    check("rollout.engine=sglang", 'rollout.sglang.urls=["http://node7:30000"]')
    (workspace / "python").touch()
    check("rollout.engine=sglang", "rollout.sglang.python=python")


def test_sglang_needs_room_at_the_end_of_the_context(workspace):
    urls = 'rollout.sglang.urls=["http://node7:30000"]'
    longest = ("rollout.max_prompt_tokens=4096", "rollout.max_response_tokens=4096")
    check(*longest)
    [fault] = faults_of(*longest, "rollout.engine=sglang", urls)
    assert "less the 2 that SGLang reserves" in fault
