"""Megatron-LM arguments are read from command lines, scripts and YAML; bash itself is the oracle for scripts."""

import json
import subprocess
import sys

import pytest

from megatron_prime.cli.megatron_script import read_arguments, read_file, read_yaml

SCRIPT = """#!/bin/bash
# a set-up in the usual shape; --not-an-argument
export CUDA_DEVICE_MAX_CONNECTIONS=1
TP=2
PP=${PP:-4}   # stages
LOAD="/ckpt/with space"
MODEL_ARGS=(
    --num-layers 28
    --swiglu
    #--hidden-size 12
    --seq-length 4096 # tokens
)
TRAINING_ARGS="
    --micro-batch-size 4 \\
    --lr 1e-6 --min-lr=1e-7
    --bf16
"
PARALLEL_ARGS=(--tensor-model-parallel-size $TP --pipeline-model-parallel-size ${PP} --sequence-parallel)
EXTRA="--overlap-grad-reduce --ddp-bucket-size 40000000"
{run} ${MODEL_ARGS[@]} $TRAINING_ARGS ${PARALLEL_ARGS[@]} $EXTRA --load "$LOAD" \\
    --data-path 0.5 a \\
    0.5 b --split "949, 50,1" | tee log.json
echo done
"""


def test_a_script_gives_the_arguments_that_bash_passes(tmp_path):
    """The program that bash starts prints its arguments, which are the expected ones."""
    show = tmp_path / "show.py"
    show.write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    text = SCRIPT.replace("{run}", f"{sys.executable} {show}")
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True, check=True)
    given: dict[str, list[str]] = {}
    for word in json.loads(done.stdout.splitlines()[0]):
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            given[name] = [value] if has_value else []
        else:
            list(given.values())[-1].append(word)
    assert len(given) == 15
    assert read_arguments(text) == given


def test_a_command_line_is_read():
    found = read_arguments('--lr 1e-6 --a-flag --values 1 -2 "three four" --lr 2e-6')
    assert found == {"lr": ["2e-6"], "a-flag": [], "values": ["1", "-2", "three four"]}


def test_a_value_known_only_at_run_time_is_kept_verbatim():
    assert read_arguments("--load $CKPT --lr `cat lr`")["load"] == ["$CKPT"]


def test_yaml_is_read_at_top_level_or_below_model_args():
    flat = "num-layers: 28\nbf16: true\nfp16: false\nlr: 1.0e-6\nload: null\nmodules: [mlp, moe]\n"
    expected = {"num-layers": ["28"], "bf16": [], "lr": ["1e-06"], "modules": ["mlp", "moe"]}
    assert read_yaml(flat) == expected
    nested = "ENV_VARS:\n  A: 1\nMODEL_ARGS:\n" + "".join(f"  --{line}\n" for line in flat.splitlines())
    assert read_yaml(nested) == expected
    assert read_yaml("language_model:\n  num_layers: 28\n") == {"num-layers": ["28"]}


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "word"])
def test_yaml_without_arguments_is_refused(text):
    with pytest.raises(ValueError, match=r"YAML|no table"):
        read_yaml(text)


def test_files_are_read_by_their_extension(tmp_path):
    (tmp_path / "a.yml").write_text("lr: 1\n")
    (tmp_path / "a.sh").write_text("x --lr 1\n")
    assert read_file(tmp_path / "a.yml") == read_file(tmp_path / "a.sh") == {"lr": ["1"]}
    with pytest.raises(ValueError, match="cannot be read"):
        read_file(tmp_path / "b.sh")
