import sys

import pytest

from megatron_prime.preflight.imports import import_faults


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "own_package_x"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('imported')\n")
    (folder / "part.py").write_text("raise SystemExit('imported')\n")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    "path", ["json:loads", "os.path:join", "sys:exit", "own_package_x:f", "own_package_x.part:f"]
)
def test_what_is_there_has_no_fault_and_is_not_imported(path):
    assert list(import_faults("reward.verifier", path, "function")) == []
    assert "own_package_x" not in sys.modules


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("json:", "is not of the form package.module:Class"),
        ("a b:c", "is not of the form package.module:Class"),
        ("no_such_module_x:f", "there is no module no_such_module_x"),
        ("no_such_package_x.y:f", "there is no module no_such_package_x.y"),
        ("own_package_x.other:f", "there is no module own_package_x.other"),
        ("own_package_x.part.more:f", "there is no module own_package_x.part.more"),
        ("..:f", "is not of the form"),
        ("a..b:f", "there is no module a..b"),
    ],
)
def test_what_is_not_there_is_a_fault(path, fault):
    (message,) = import_faults("environment.name", path, "Class")
    assert message.startswith(f"environment.name = {path!r}") and fault in message
