"""A Megatron-LM command becomes a file that `check` accepts; otherwise all errors are listed and no file is written."""

import json
import tomllib

import pytest

from megatron_prime.cli import main
from megatron_prime.cli.from_megatron import toml_text
from megatron_prime.config import load_config
from tests.support.sparse_weights import write_weights
from tests.support.tokenizers import byte_tokenizer

MODEL = {
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "vocab_size": 300,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
}
LINE = (
    "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --num-layers 4 --hidden-size 32 --bf16 --lr 2e-6 "
    "--weight-decay 0.1 --clip-grad 0.5 --micro-batch-size 2 --seq-length 4096 --global-batch-size 64 --train-iters 30 "
    "--save runs/old --seed 7 --ddp-bucket-size 1000000 --use-distributed-optimizer --log-interval 1 "
    "--recompute-granularity full --recompute-method block --recompute-num-layers 2 --attention-dropout 0"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODEL))
    write_weights(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    return tmp_path


def run(line: str, *more: str) -> int:
    return main(["from-megatron", f"--args={line}", "--model", "model", "-o", "run.toml", *more])


def test_the_written_file_passes_check(folder, capsys):
    assert run(LINE, 'data.train=["train.jsonl"]', "policy.lr=3e-6") == 0
    printed = capsys.readouterr().out
    config = load_config(folder / "run.toml")
    assert (config.parallel.tensor, config.parallel.pipeline, config.platform.dtype) == (2, 2, "bf16")
    assert (config.policy.lr, config.policy.weight_decay, config.policy.grad_clip) == (3e-6, 0.1, 0.5)
    assert (config.trainer.max_tokens_per_microbatch, config.trainer.prompts_per_step) == (8192, 16)
    assert (config.trainer.num_steps, str(config.run_dir), config.seed) == (30, "runs/old", 7)
    recompute = config.memory.recompute
    assert (recompute.granularity, recompute.method, recompute.num_layers) == ("full", "block", 2)
    assert config.megatron.ddp == {"bucket_size": 1000000}
    for word in LINE.split():
        if word.startswith("--"):
            assert printed.count(f"  {word} ") == 1, "each argument is listed once"
    assert main(["check", "run.toml", "parallel.num_processes=4"]) == 0


def test_all_errors_are_listed_and_nothing_is_written(folder, capsys):
    assert run("--lrr 1 --num-layers 5 --fp16 --train-iters 3") == 2
    printed = capsys.readouterr().err
    assert "3 faults" in printed and "--lrr: Megatron-LM has no such argument" in printed
    assert (
        "--num-layers: 5, but config.json has num_hidden_layers = 4" in printed
        and "--fp16 is refused: " in printed
    )
    assert not (folder / "run.toml").exists()


def test_unsupported_arguments_may_be_skipped_but_not_errors(folder, capsys):
    assert run("--fp16 --train-iters 3") == 2
    assert run("--fp16 --train-iters 3", "--skip-refused") == 0
    assert "refused (1)\n  --fp16  training is in fp32 or bf16" in capsys.readouterr().out
    assert run("--lrr 1 --train-iters 3", "--skip-refused") == 2


def test_an_invalid_resulting_configuration_is_reported(folder, capsys):
    assert run("--lr 1e-6 --min-lr 1e-5") == 2
    printed = capsys.readouterr().err
    assert "trainer.num_steps is missing" in printed and not (folder / "run.toml").exists()
    assert run("--train-iters 3 --lr 1e-6 --min-lr 1e-5") == 2
    assert "min_lr = 1e-05 exceeds lr = 1e-06" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "more", "fault"),
    [
        ("words alone", (), "holds no argument"),
        ("--lr 1", ("lr",), "not of the form"),
        ("--lr 1", ("--model", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_invalid_usage_is_refused(folder, capsys, line, more, fault):
    assert run(line, *more) == 2
    assert fault in capsys.readouterr().err


def test_written_toml_reads_back_equal():
    settings = {"a": 'quo"te \\ ü', "t.x": [1, 2], "t.u.y": True, "t.z": 1e-7, "b": 3}
    expected = {"a": 'quo"te \\ ü', "b": 3, "t": {"x": [1, 2], "z": 1e-7, "u": {"y": True}}}
    assert tomllib.loads(toml_text(settings)) == expected
