import subprocess
import sys
from pathlib import Path

import pytest

from megatron_prime.config import ConfigError, load_config
from tests.support import deadlines


def faults_of(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return caught.value.faults


def test_a_minimal_file_takes_every_default(minimal_toml):
    config = load_config(minimal_toml)
    assert config.run_dir == Path("runs/a")
    assert config.trainer.num_steps == 3
    assert (config.rollout.group_size, config.prm.beta, config.policy.lr) == (4, 0.05, 5e-7)


def test_overrides_are_toml_values_and_the_last_one_wins(minimal_toml):
    config = load_config(
        minimal_toml,
        [
            "policy.lr=1e-6",
            "policy.lr = 2e-6",
            "data.shuffle=false",
            'data.train=["a.jsonl", "b.parquet"]',
            "model.path=checkpoints/sft",
            "platform.device='cpu'",
        ],
    )
    assert config.policy.lr == 2e-6
    assert config.data.shuffle is False
    assert config.data.train == (Path("a.jsonl"), Path("b.parquet"))
    assert config.model.path == Path("checkpoints/sft")
    assert config.platform.device == "cpu"


def test_an_override_may_create_a_table(minimal_toml):
    assert load_config(minimal_toml, ["evaluation.max_prompts=7"]).evaluation.max_prompts == 7


def test_tables_with_free_names_are_checked_too(minimal_toml):
    table = "evaluation.benchmarks.aime24"
    config = load_config(minimal_toml, [f"{table}.path=a.jsonl", f"{table}.samples_per_prompt=4"])
    assert config.evaluation.benchmarks["aime24"].samples_per_prompt == 4
    (fault,) = faults_of(minimal_toml, f"{table}.temperature=0.0")
    assert fault.startswith(f"{table}.path is missing: jsonl, parquet or csv")
    (fault,) = faults_of(minimal_toml, f"{table}.path=a.jsonl", f"{table}.pth=a.jsonl")
    assert fault.startswith(f"unknown key {table}.pth")
    assert load_config(minimal_toml, ["data.weights.code=2"]).data.weights == {"code": 2.0}
    (fault,) = faults_of(minimal_toml, "data.weights.code=0")
    assert fault.startswith("data.weights.code = 0: must be greater than 0")


@pytest.mark.parametrize(
    "text", ["run_dir=2024", "run_dir=true", "run_dir=a#b", "run_dir=a=b", "run_dir=1\nx = 2"]
)
def test_text_fields_take_numbers_as_text(minimal_toml, text):
    assert str(load_config(minimal_toml, [text]).run_dir) == text.removeprefix("run_dir=")


def test_none_unsets_an_optional_field_unless_it_is_a_choice(minimal_toml):
    minimal_toml.write_text(minimal_toml.read_text() + "[policy]\ndual_clip = 'none'\ncorrection = 'none'\n")
    config = load_config(minimal_toml, ["advantage.whitening=none", "prm.path=none"])
    assert config.policy.dual_clip is None
    assert config.policy.correction == "none"
    assert config.prm.path is None
    assert config.advantage.whitening == "none"


def test_paths_stay_relative_to_the_working_directory_and_the_home_folder_is_expanded(
    minimal_toml, monkeypatch
):
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(minimal_toml, ["run_dir=~/runs/b"])
    assert config.run_dir == Path("/home/someone/runs/b")
    assert config.model.path == Path("model")


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("policy.lrr=1", "unknown key policy.lrr; did you mean policy.lr?"),
        ("polcy.lr=1", "unknown key polcy; did you mean policy?"),
        ("policy.group_size=4", "unknown key policy.group_size; did you mean rollout.group_size?"),
        ("sede=1", "unknown key sede; did you mean seed?"),
        ("zzz.qqq=1", "unknown key zzz"),
        ("policy.lr=fast", "policy.lr = 'fast': must be a number"),
        ("policy.lr=-1.0", "policy.lr = -1.0: must be greater than or equal to 0"),
        ("policy.lr=inf", "policy.lr = inf: must be a finite number"),
        ("trainer.num_steps=1.5", "trainer.num_steps = 1.5: must be a whole number"),
        ('trainer.num_steps="5"', "trainer.num_steps = '5': must be a whole number"),
        ("trainer.num_steps=true", "trainer.num_steps = true: must be a whole number"),
        ("data.shuffle=1", "data.shuffle = 1: must be true or false"),
        ("data.train=a", 'data.train = \'a\': must be a list, such as ["first", "second"]'),
        ("data.train=[1]", "data.train[0] = 1: must be a string"),
        ("platform.device=gpu", "platform.device = 'gpu': must be 'auto', 'cpu' or 'cuda'"),
        ("policy", "override 'policy' is not of the form section.key=value"),
        (".lr=1", "override '.lr=1' is not of the form section.key=value"),
        ("policy=1", "override 'policy=1': policy is a table; set one of its keys"),
        ("run_dir.x=1", "override 'run_dir.x=1': run_dir is a value, not a table"),
        (
            "parallel.sequence_parallel=true",
            "parallel: sequence_parallel needs tensor > 1; set parallel.sequence_parallel = false",
        ),
    ],
)
def test_each_fault_is_one_line_that_says_where_and_what_is_allowed(minimal_toml, override, fault):
    assert faults_of(minimal_toml, override) == (fault,)


def test_all_faults_are_reported_together(minimal_toml):
    minimal_toml.write_text("[modle]\npath = 'x'\n[trainer]\n", encoding="utf-8")
    faults = faults_of(minimal_toml, "policy.lr=fast", "nonsense")
    assert [fault.split()[0] for fault in faults] == [
        "override",
        "run_dir",
        "model.path",
        "policy.lr",
        "trainer.num_steps",
        "unknown",
    ]
    with pytest.raises(ConfigError, match=r"run.toml: 6 faults\n  - override"):
        load_config(minimal_toml, ["policy.lr=fast", "nonsense"])


def test_a_malformed_override_is_an_error_by_itself(minimal_toml):
    assert len(faults_of(minimal_toml, "nonsense")) == 1


def test_a_table_given_as_a_value_is_named(minimal_toml):
    minimal_toml.write_text("policy = 3\n" + minimal_toml.read_text(), encoding="utf-8")
    assert faults_of(minimal_toml) == ("policy = 3: must be a table",)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"run_dir = ", "is not valid TOML"),
        (b"\xff\xfe", "is not UTF-8 text"),
        ("run_dir = 'a'".encode("utf-16"), "is not UTF-8 text"),
        (b"x = " + b"[" * 20_000, "is not valid TOML: it is nested too deeply"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path, content, fault):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    assert faults_of(path)[0].startswith(fault)


def test_a_byte_order_mark_is_no_part_of_a_file(minimal_toml):
    config = load_config(minimal_toml)
    minimal_toml.write_bytes(b"\xef\xbb\xbf" + minimal_toml.read_bytes())
    assert load_config(minimal_toml) == config


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert faults_of(tmp_path / "absent.toml")[0].startswith("no such file")
    assert faults_of(tmp_path)[0].startswith("cannot be read")


def test_loading_imports_no_framework(minimal_toml):
    code = (
        "import sys; from pathlib import Path; from megatron_prime.config import load_config; "
        f"load_config(Path({str(minimal_toml)!r})); "
        "assert not {'torch', 'numpy', 'megatron', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=deadlines.seconds(60))
