"""A quickstart's folder gets a task and a configuration that belong together, complete or not at all."""

from pathlib import Path

import pytest

from megatron_prime.config.loading import load_config
from megatron_prime.quickstart import TASKS, arithmetic_task
from megatron_prime.quickstart.folder import DEFAULT_ROOT, clear, packaged_config, prepare


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder that has its task already."""
    (tmp_path / "my root" / "task").mkdir(parents=True)
    return tmp_path / "my root"


@pytest.mark.parametrize("task", TASKS)
def test_the_packaged_configuration_names_files_of_the_default_folder_alone(task):
    config = load_config(packaged_config(task), [])
    paths = [config.run_dir, config.model.path, config.sft.output, *config.sft.data, *config.data.train]
    assert {str(Path(path).parent) for path in paths} == {DEFAULT_ROOT, f"{DEFAULT_ROOT}/task"}


@pytest.mark.parametrize("task", TASKS)
def test_the_configuration_names_the_files_of_its_folder(root, task):
    config = load_config(prepare(root, 0, task), [])
    names = [config.run_dir, config.sft.output, config.model.path]
    names += [*config.data.train, *config.data.evaluation, *config.sft.data]
    expected = ["prime", "sft", "sft", *(f"task/{name}.jsonl" for name in ("train", "heldout", "sft"))]
    assert [Path(name) for name in names] == [root / name for name in expected]


def test_a_configuration_that_the_user_has_changed_is_kept(root):
    config = prepare(root, seed=0)
    config.write_text("changed")
    assert prepare(root, seed=0).read_text() == "changed"


def test_an_interruption_leaves_no_incomplete_task(tmp_path, monkeypatch):
    def interrupted(folder: Path, seed: int) -> None:
        folder.mkdir(parents=True)
        (folder / "sft.jsonl").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(arithmetic_task, "write_all", interrupted)
        prepare(tmp_path, 0, "arithmetic")
    assert not (tmp_path / "task").exists()
    prepare(tmp_path, 0, "arithmetic")
    assert sorted(path.name for path in (tmp_path / "task").iterdir()) == [
        "heldout.jsonl",
        "model",
        "sft.jsonl",
        "train.jsonl",
    ]


def test_a_folder_that_a_configuration_cannot_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="choose a folder without quotes"):
        prepare(tmp_path / 'a"b', seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_task_is_refused(root):
    prepare(root, 0, "tools")
    with pytest.raises(ValueError, match="holds the task tools: choose another folder"):
        prepare(root, 0)


def test_a_folder_of_an_earlier_version_is_refused(root):
    (root / "quickstart.toml").touch()
    with pytest.raises(ValueError, match="holds the task arithmetic: choose another folder"):
        prepare(root, 0)


def test_a_fresh_start_removes_a_quickstart_and_nothing_else(tmp_path):
    clear(tmp_path / "missing")
    clear(tmp_path)  # It is empty.
    root = tmp_path / "root"
    prepare(root, 0)
    clear(root)
    assert not root.exists()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="no folder of a quickstart: choose another --root"):
        clear(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
