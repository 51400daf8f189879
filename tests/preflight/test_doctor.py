"""Faults of the machine are found and reported with a fix."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_prime.config.loading import load_config
from megatron_prime.config.run import PrimeConfig
from megatron_prime.preflight import doctor
from megatron_prime.preflight.doctor import Finding, check_engine, check_folder, examine, examine_run
from tests.preflight.workspace import write_model
from tests.support.tokenizers import byte_tokenizer


def config(tmp_path, **sections):
    settings = {"run_dir": tmp_path / "run", "model": {"path": tmp_path}, "trainer": {"num_steps": 1}}
    return PrimeConfig.model_validate(settings | sections)


def by_subject(findings, subject):
    return [finding for finding in findings if finding.subject == subject]


def test_this_machine_is_in_order(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    findings = list(examine(config(tmp_path), 5.0))
    assert not [finding for finding in findings if finding.state == "fault"]
    assert {"python", "packages", "devices", "files", "memory", "ranks"} == {f.subject for f in findings}
    assert any("locks work" in finding.text for finding in findings)
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def test_a_gpu_that_is_asked_for_and_missing_is_a_fault(tmp_path):
    (device,) = by_subject(examine(config(tmp_path, platform={"device": "cuda"}), 5.0), "devices")
    assert device.state == "fault" and "CUDA_VISIBLE_DEVICES" in device.fix


def test_a_folder_that_cannot_be_written_is_a_fault():
    (finding,) = check_folder(Path("/proc"))
    assert finding.state == "fault" and "/proc cannot be written" in finding.text


def run_findings(*overrides):
    findings = examine_run(load_config(Path("run.toml"), overrides))
    return [(finding.state, finding.text) for finding in findings]


def test_the_run_is_examined_like_check_does(workspace, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    write_model(workspace / "model", vocab_size=300)
    byte_tokenizer().save_pretrained(workspace / "model")
    (workspace / "train.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n' * 4)
    assert run_findings() == [("ok", "the configuration is sound")]
    ((state, text),) = run_findings("parallel.pipeline=3")
    assert (state, text.partition(" exceeds")[0]) == ("fault", "model.path = model: parallel.pipeline = 3")
    assert run_findings("trainer.eval_every=9")[0][0] == "warning"
    (workspace / "train.jsonl").write_text('{"prompt": "1+1"}\n')
    ((state, text),) = run_findings()
    assert state == "fault" and text.startswith("data.train: train.jsonl, row 1: no field 'answer'")
    (workspace / "sft.jsonl").write_text('{"prompt": "1+1", "response": "2"}\n')
    assert run_findings("data.train=[]", "sft.data=['sft.jsonl']") == [
        ("ok", "the configuration is sound for sft")
    ]
    ((state, text),) = run_findings("data.train=[]", "sft.data=['train.jsonl']")
    assert state == "fault" and text.startswith("sft.data: train.jsonl, row 1: no field 'response'")


def engine(tmp_path, script):
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return list(check_engine(path, 5.0))


def test_the_engine_environment_is_examined_by_its_own_interpreter(tmp_path):
    [found] = engine(tmp_path, "echo 0.5.23 2.9.0 0")
    assert (found.state, found.text) == ("ok", "SGLang 0.5.23 on torch 2.9.0")
    [broken] = engine(tmp_path, "echo 'ModuleNotFoundError: No module named sglang' >&2; exit 1")
    assert broken.state == "fault" and "cannot import sglang: ModuleNotFoundError" in broken.text
    assert "make sglang" in next(check_engine(tmp_path / "absent", 5.0)).fix


@pytest.mark.parametrize(("engine_nccl", "is_warned"), [("2.30.7", True), ("2.29.7", False), ("0", False)])
def test_two_versions_of_nccl_are_warned_of(tmp_path, monkeypatch, engine_nccl, is_warned):
    monkeypatch.setattr(doctor, "nccl_version", lambda: "2.29.7")
    findings = engine(tmp_path, f"echo 0.5.23 2.14.1 {engine_nccl}")
    assert [finding.state for finding in findings] == ["ok", *["warning"] * is_warned]
    if is_warned:
        assert "NCCL 2.29.7" in findings[1].text and "NCCL 2.30.7" in findings[1].text


def test_a_finding_is_one_line_and_its_fix_another():
    assert Finding("ok", "files", "fine").line() == "ok      files       fine"
    assert Finding("fault", "files", "full", "empty it").line().splitlines()[1].strip() == "-> empty it"
    line = Finding("fault", "rewards", "http://u:SECRET@host fails", "try http://host?SECRET").line()
    assert "http://***@host fails" in line and "SECRET" not in line


def test_ranks_that_do_not_connect_make_exit_code_1(tmp_path):
    environment = os.environ | {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "megatron_prime", "doctor", "--timeout-s", "1"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "waited 1 s for ranks 1 of 2" in done.stdout and "1 fault" in done.stdout


def test_a_machine_that_cannot_build_kernels_is_told(tmp_path, monkeypatch):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda _: str(tmp_path))
    compiler = tmp_path / "gcc"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "nowhere")
    assert doctor.check_compiler().state == "ok"
    (tmp_path / "Python.h").unlink()
    assert f"there is no {tmp_path}/Python.h" in doctor.check_compiler().text
    compiler.unlink()
    found = doctor.check_compiler()
    assert found.state == "fault" and "no a C compiler and no" in found.text and "python3-dev" in found.fix
