"""Data files of each command: missing, empty, of a type that no reader takes."""

import pytest

from tests.preflight.workspace import check, faults_of


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


def test_the_file_of_a_probe_exists_where_there_is_a_prm(workspace):
    (fault,) = faults_of("prm.probe=absent.jsonl")
    assert fault.startswith("prm.probe: absent.jsonl does not exist")
    check("prm.probe=absent.jsonl", "prm.enabled=false")
    check("prm.probe=train.jsonl")


def test_empty_files_and_folders_are_no_data(workspace):
    (workspace / "empty.jsonl").touch()
    faults = faults_of("data.evaluation=['empty.jsonl', 'model']")
    assert faults[0] == "data.evaluation: empty.jsonl is empty"
    assert faults[1].startswith("data.evaluation: model is a directory, not a file")
    (fault,) = faults_of("data.chat_template_file=none.jinja")
    assert fault.startswith("data.chat_template_file = none.jinja does not exist")


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.txt"])
def test_a_type_that_no_reader_takes_is_refused(name, workspace):
    (workspace / name).write_bytes(b"\x1f\x8b")
    (fault,) = faults_of(f"data.train=['{name}']")
    assert fault.startswith(f"data.train: {name} has unknown type ")
