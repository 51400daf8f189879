import json
import os
import socket
import threading
import time

import psutil
import pytest

from megatron_prime.rewards import VerificationStatus, VerifierPool
from megatron_prime.rewards.code.cgroup import parent_group
from megatron_prime.rewards.code.sandbox import FIRST_UID
from megatron_prime.rewards.code.verifier import CodeVerifier, evenly_spaced, last_program, read_tests
from tests.rewards.code import sandbox_attacks
from tests.support import deadlines
from tests.support.sandbox_probe import needs_sandbox

SUM = json.dumps({"inputs": ["13 29\n"], "outputs": ["42\n"]})
CALL = json.dumps({"fn_name": "add", "inputs": [[13, 29]], "outputs": [[42]]})
SECONDS = 0.7
"""Time limit in seconds of an attack that does not end by itself."""


def fenced(code):
    return f"So:\n```python\n{code}\n```\nDone."


@pytest.fixture(scope="module")
def strict():
    return CodeVerifier(test_timeout_s=SECONDS, memory_mib=512)


@pytest.fixture(scope="module")
def patient():
    return CodeVerifier(test_timeout_s=20.0, total_timeout_s=60.0)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Yield a folder, servers and an environment variable outside the sandbox that all reveal the answer, 42."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "secret.txt").write_text("42")
    servers = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
    name = f"megatron_prime_{os.getpid()}"
    servers[1].bind(f"\0{name}")
    servers[1].listen()
    for server in servers:
        threading.Thread(target=_give_away, args=(server,), daemon=True).start()
    os.environ["SECRET_VALUE"] = "42"
    yield {
        "SECRET_VALUE": "SECRET_VALUE",
        "SECRET": str(folder / "secret.txt"),
        "HOST": str(folder),
        "PARENT": str(os.getpid()),
        "PORT": str(servers[0].getsockname()[1]),
        "ABSTRACT": name,
        "BEFORE": {child.pid for child in psutil.Process().children()},
    }
    del os.environ["SECRET_VALUE"]
    for server in servers:
        server.close()


def _give_away(server):
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"42\n")


def fill(code, host):
    if "SECRET_VALUE" in code:
        return code
    for name, value in host.items():
        if isinstance(value, str):
            code = code.replace(name, value)
    return code


def left_behind(before):
    """Return the processes of sandboxes that still run; `before` are children of other tests, such as servers."""
    box_uid = FIRST_UID + os.getpid()
    children = [child for child in psutil.Process().children() if child.pid not in before]
    in_boxes = [process for process in psutil.process_iter(["uids"]) if process.info["uids"].real == box_uid]
    return [p for p in (*children, *in_boxes) if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def assert_nothing_is_left(host):
    deadline = time.monotonic() + deadlines.seconds(60)
    while left := left_behind(host["BEFORE"]):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    assert os.listdir(host["HOST"]) == ["secret.txt"]


@needs_sandbox
@pytest.mark.parametrize("name", sandbox_attacks.PRINTED)
def test_an_attack_on_printed_outputs_gains_and_leaves_nothing(name, strict, host):
    code = fill(sandbox_attacks.PRINTED[name], host)
    assert strict.verify(fenced(code), SUM) == 0.0
    assert_nothing_is_left(host)


@needs_sandbox
@pytest.mark.parametrize("name", sandbox_attacks.CALLED)
def test_an_attack_on_results_gains_and_leaves_nothing(name, strict, host):
    assert strict.verify(fenced(fill(sandbox_attacks.CALLED[name], host)), CALL) == 0.0
    assert_nothing_is_left(host)


@needs_sandbox
def test_the_attacks_would_succeed_on_an_open_machine(host):
    """Check that the protected things exist: outside a sandbox, the same programs reach them."""
    open_machine = CodeVerifier(sandbox="none-i-accept-the-risk", test_timeout_s=20.0)
    for name in ("read a host file", "symlink to the host", "TCP to loopback", "abstract socket"):
        code = fill(sandbox_attacks.PRINTED[name], host).replace("/tmp/link", "link")
        assert open_machine.verify(fenced(code), SUM) == 1.0, name


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "truth"),
    [
        ("print(sum(map(int, input().split())))", SUM),
        ("import sys\nprint(sum(int(x) for x in sys.stdin.read().split()))\nexit()", SUM),
        ("if __name__ == '__main__':\n    a, b = map(int, input().split())\n    print(a + b)", SUM),
        ("def add(a, b):\n    print('noise')\n    return a + b", CALL),
        ("class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a + b", CALL),
        ("import collections, heapq, math, itertools, functools, re, bisect\ndef add(a, b): return (a + b)", CALL),
        ("import sys, threading\nthreading.stack_size(1 << 26)\ndef main(): print(sum(map(int, input().split())))\n"
         "t = threading.Thread(target=main)\nt.start()\nt.join()", SUM),
        ("open('/tmp/x', 'w').write('42')\nprint(open('/tmp/x').read())", SUM),
    ],
)  # fmt: skip
def test_honest_programs_pass(code, truth, patient):
    assert patient.verify(fenced(code), truth) == 1.0


@needs_sandbox
def test_the_reward_is_the_fraction_of_tests_passed(patient):
    truth = json.dumps({"inputs": ["1", "2", "3", "4"], "outputs": ["1", "4", "9", "16"]})
    half = fenced("n = int(input())\nprint(n * n if n < 3 else 0)")
    assert patient.verify(half, truth) == 0.5
    assert CodeVerifier(partial_credit=False).verify(half, truth) == 0.0
    assert CodeVerifier(partial_credit=False).verify(fenced("print(int(input()) ** 2)"), truth) == 1.0


@needs_sandbox
def test_tests_that_have_not_started_in_time_fail():
    truth = json.dumps({"inputs": ["1"] * 8, "outputs": ["1"] * 8})
    verifier = CodeVerifier(test_timeout_s=0.5, total_timeout_s=0.7)
    start = time.monotonic()
    assert verifier.verify(fenced("import time\ntime.sleep(99)"), truth) == 0.0
    # Far below 8 sleeps and a hang, but enough for a loaded machine.
    assert time.monotonic() - start < deadlines.seconds(30)


@needs_sandbox
def test_killing_a_worker_kills_its_sandbox():
    settings = {"test_timeout_s": 300.0, "total_timeout_s": 300.0}
    with VerifierPool("code", 1, 1.5, settings=settings) as pool:
        uid = FIRST_UID + pool.worker_pids[0]
        (outcome,) = pool.verify_all([(fenced("import time\ntime.sleep(10**6)"), SUM)])
        assert outcome.status is VerificationStatus.TIMEOUT
        deadline = time.monotonic() + deadlines.seconds(60)
        while [p for p in psutil.process_iter(["uids"]) if p.info["uids"].real == uid]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    CodeVerifier()  # the next worker removes the groups that the killed one could not
    pid = uid - FIRST_UID
    parents = [parent_group(controller) for controller in ("memory", "pids")]
    assert not [folder for parent in parents if parent for folder in parent.glob(f"megatron_prime_{pid}_*")]


def test_the_last_closed_python_block_is_the_program():
    assert last_program("```python\na\n```\ntext\n```python\nb\n```") == "b\n"
    assert last_program("```python\na\n```\n```\nno\n```") == "a\n"
    assert last_program("```python\na\n```\n```python\nb") == "a\n"
    assert last_program("```Python3\r\na\r\n```\r\n") == "a\n"
    assert last_program("  ```python\n  a\n  ```") == "  a\n"
    assert last_program("```python\n" * 200_000) is None
    assert last_program("```cpp\na\n```") is None
    assert last_program("print(42)") is None
    assert last_program("```python\ns = '```'\n```") == "s = '```'\n"


def test_a_response_without_a_program_gets_zero_without_a_sandbox():
    verifier = CodeVerifier(sandbox="none-i-accept-the-risk")
    assert verifier.verify("print(42)", SUM) == 0.0


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("42", "lists"),
        ("not json", "must be JSON"),
        ('{"inputs": ["1"], "outputs": []}', "of equal length"),
        ('{"inputs": [], "outputs": []}', "non-empty"),
        ('{"fn_name": "a b", "inputs": [[1]], "outputs": [1]}', "not a valid function name"),
        ('{"fn_name": "f", "inputs": [1], "outputs": [1]}', "list of arguments"),
    ],
)
def test_an_invalid_ground_truth_is_an_error(answer, fault):
    with pytest.raises(ValueError, match=fault):
        read_tests(answer)


def test_tests_are_read():
    fn_name, (test,) = read_tests('{"inputs": [["1 2", "3"]], "outputs": [["4"]]}')
    assert (fn_name, test.stdin, test.expected) == (None, "1 2\n3", "4")
    fn_name, (test,) = read_tests(CALL)
    assert (fn_name, json.loads(test.stdin), test.expected) == ("add", [13, 29], [42])


def test_a_subset_of_the_tests_is_evenly_spaced():
    assert evenly_spaced(list(range(10)), 4) == [0, 3, 6, 9]
    assert evenly_spaced(list(range(3)), 4) == [0, 1, 2]
    assert evenly_spaced(list(range(3)), 1) == [0]


@needs_sandbox
def test_an_interpreter_that_fails_in_the_sandbox_is_an_error_at_start(tmp_path):
    script = tmp_path / "python"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *base_prefix*) echo; echo;; *) printf "\\006"; exit 1;; esac\n'
    )
    script.chmod(0o755)
    settings = {"python": str(script), "readable_paths": [str(tmp_path)]}
    with pytest.raises(RuntimeError, match=r"print.* 42"):
        CodeVerifier(**settings).warm_up()
    with pytest.raises(RuntimeError, match="does not start"):
        VerifierPool("code", 1, 60.0, settings=settings)


@needs_sandbox
def test_code_runs_in_the_pool():
    with VerifierPool("code", 2, 60.0, settings={"test_timeout_s": 20.0, "total_timeout_s": 40.0}) as pool:
        right = fenced("print(sum(map(int, input().split())))")
        outcomes = pool.verify_all([(right, SUM), (fenced("print(1)"), SUM), (right, "no tests")])
    assert [outcome.reward for outcome in outcomes[:2]] == [1.0, 0.0]
    assert outcomes[2].status is VerificationStatus.ERROR
