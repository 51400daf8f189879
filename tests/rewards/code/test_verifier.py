import json
import os
import re
import socket
import threading
import time

import psutil
import pytest

from megatron_prime.rewards import VerificationStatus, VerifierPool
from megatron_prime.rewards.code.cgroup import parent_group
from megatron_prime.rewards.code.sandbox import FIRST_UID
from megatron_prime.rewards.code.verifier import CodeVerifier, last_program
from megatron_prime.rewards.verifier import check_answer
from tests.rewards.code import sandbox_attacks
from tests.support import deadlines
from tests.support.samples import samples
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
def test_the_subset_of_the_tests_has_one_that_expects_something():
    truth = json.dumps({"inputs": ["1"] * 9, "outputs": [*[""] * 4, "x", *[""] * 4]})
    verifier = CodeVerifier(max_tests=1)
    assert verifier.verify(fenced("pass"), truth) == 0.0
    assert verifier.verify(fenced("print('x')"), truth) == 1.0


@needs_sandbox
def test_the_time_to_start_a_sandbox_is_not_the_programs(monkeypatch):
    truth = json.dumps({"inputs": ["1"] * 3, "outputs": ["1"] * 3})
    verifier = CodeVerifier(total_timeout_s=2.5)
    started = verifier._sandbox._command

    def slow(*arguments):
        time.sleep(1.0)
        return started(*arguments)

    monkeypatch.setattr(verifier._sandbox, "_command", slow)
    assert verifier.verify(fenced("print(input())"), truth) == 1.0


@needs_sandbox
def test_killing_a_worker_kills_its_sandbox():
    settings = {"test_timeout_s": 300.0, "total_timeout_s": 300.0}
    with VerifierPool("code", 1, 1.5, settings=settings) as pool:
        uid = FIRST_UID + pool.worker_pids[0]
        (outcome,) = pool.verify_all(samples([(fenced("import time\ntime.sleep(10**6)"), SUM)]))
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


def test_a_ground_truth_is_checked_without_a_sandbox():
    check_answer("code", SUM)
    with pytest.raises(ValueError, match="of equal length"):
        check_answer("code", '{"inputs": ["1"], "outputs": []}')


def called(given, expected):
    return json.dumps({"fn_name": "f", "inputs": [given], "outputs": [expected]})


def printed(given, expected):
    return json.dumps({"inputs": [given], "outputs": [expected]})


READ_ALL = "import sys\nprint(repr(sys.stdin.buffer.read().decode()))"
LINKED = "class Solution:\n    def f(self, head: Optional[ListNode]) -> Optional[ListNode]:\n"
REVERSED = (
    f"{LINKED}        last = None\n"
    "        while head: head.next, last, head = last, head, head.next\n        return last"
)
LONG = '{"fn_name": "f", "inputs": [[5000]], "outputs": [1%s]}' % ("0" * 5000)
MERGED = (
    "class Solution:\n    def f(self, lists: List[Optional[ListNode]]) -> int:\n"
    "        return sum(node.val + node.next.val for node in lists)"
)
MIRRORED = (
    "class Solution:\n    def f(self, root: 'TreeNode') -> 'TreeNode':\n"
    "        if root: root.left, root.right = self.f(root.right), self.f(root.left)\n        return root"
)
AS_RELEASED = {
    # program, ground truth -> reward
    "line ends of the input": (READ_ALL, printed("1\r\n2\r3\n", r"'1\n2\n3\n'"), 1),
    "line ends of the expected output": ("print(1)\nprint(2)", printed("", "1\r\n2\r"), 1),
    "line ends of the output": ("print(1, end='\\r\\n')\nprint(2, end='\\r')", printed("", "1\n2\n"), 1),
    "integer keys": ("def f(d): return d[1] + d[20]", called([{"1": 2, "20": 3}], 5), 1),
    "integer keys beside other arguments": ("def f(d, k): return d[k]", called([{"1": 2}, 1], 2), 1),
    "other keys": ("def f(d): return d['1'] + d['a']", called([{"1": 2, "a": 3}], 5), 1),
    "keys of an inner dictionary": ("def f(d): return d[0]['1']", called([[{"1": 2}]], 2), 1),
    "integer keys of the result": ("def f(n): return {i: i * i for i in range(n)}", called([2], {"0": 0, "1": 1}), 1),
    "wrong keys of the result": ("def f(n): return {i + 1: i * i for i in range(n)}", called([2], {"0": 0, "1": 1}), 0),
    "calls as text": (
        "def f(a, s): return [s] * len(a)",
        '{"fn_name": "f", "inputs": ["[1, 2]\\n\\"x\\""], "outputs": ["[\\"x\\", \\"x\\"]"]}', 1,
    ),
    "a long integer, printed": ("print(10 ** 6000)", printed("", "1" + "0" * 6000), 1),
    "a long integer, read": ("print(int(input()) + 1)", printed("9" * 5000, "1" + "0" * 5000), 1),
    "a long integer, returned": ("def f(n): return 10 ** n", LONG, 1),
    "another long integer": ("def f(n): return 10 ** n + 1", LONG, 0),
    "no imports, printed": ("print(gcd(*map(int, sys.stdin.readline().split())))", printed("12 18", "6"), 1),
    "built-in pow beside math": ("def f(a): return pow(a, 3, 7) + gcd(4, 6)", called([2], 3), 1),
    "deep recursion": ("def f(n): return 0 if n == 0 else 1 + f(n - 1)", called([20000], 20000), 1),
    "a linked list": (REVERSED, called([[1, 2, 3]], [3, 2, 1]), 1),
    "another linked list": (REVERSED, called([[1, 2, 3]], [1, 2, 3]), 0),
    "an empty linked list": (REVERSED, called([[]], []), 1),
    "linked lists": (MERGED, called([[[1, 2], [3, 4]]], 10), 1),
    "a tree": (MIRRORED, called([[1, 2, 3, None, 4]], [1, 3, 2, None, None, 4]), 1),
    "a cycle": (f"{LINKED}        head.next = head\n        return head", called([[1]], [1]), 0),
    "a decimal of two places": ("print(1234567.0)", printed("", "1234567.89"), 0),
    "a blank line at the begin": ("print('YES')", printed("", "\nYES\n"), 1),
    "a cached method": (
        "class Solution:\n    @lru_cache(None)\n    def f(self, root: Optional[TreeNode]): return root.left.val",
        called([[1, 2]], 2), 1,
    ),
    "any number of arguments": ("def f(*all) -> TreeNode: return TreeNode(sum(all[0]))", called([[1, 2]], [3]), 1),
    "an object that is called": (
        "class F:\n    def __call__(self, head: ListNode): return head.val\nf = F()", called([[7]], 7), 1,
    ),
    "a static method": ("class Solution:\n    @staticmethod\n    def f(a, b=2): return a + b", called([1], 3), 1),
    "a class method": ("class Solution:\n    @classmethod\n    def f(cls, a: int): return a", called([1], 1), 1),
    "a built-in function": ("f = sorted", called([[2, 1]], [1, 2]), 1),
    "an async method": ("class Solution:\n    async def f(self, a): return a", called([1], 1), 0),
    "empty lists among lists": (
        "def f(head: ListNode) -> List[Optional[ListNode]]: return [head, None]", called([[1]], [[1], []]), 1,
    ),
    "an argument changed in place": ("def f(a: List[int]) -> None: a.reverse()", called([[1, 2]], [2, 1]), 1),
    "an argument left as it was": ("def f(a: List[int]) -> None: pass", called([[1, 2]], [2, 1]), 0),
    "nothing returned": ("def f(a: List[int]): a.reverse()", called([[1, 2]], [2, 1]), 0),
    "keys that are no integers": ("def f(d): return sorted(d)", called([{"007": 1, "7": 2}], ["007", "7"]), 1),
    "a fraction": ("from fractions import Fraction\ndef f(a): return [Fraction(a, 2)]", called([1], [0.5]), 1),
    "a decimal number": ("from decimal import Decimal\ndef f(a): return Decimal('0.5')", called([1], 0.5), 1),
    "an array": ("from array import array\ndef f(a): return array('q', [a])", called([1], [[1]]), 1),
    "deep recursion through a cache": (
        "@lru_cache(None)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)", called([100000], 100000), 1,
    ),
    "nothing, where most tests expect nothing": (
        "pass", json.dumps({"inputs": ["1"] * 3, "outputs": ["", "", "x"]}), 0,
    ),
    "something, where most tests expect nothing": (
        "if input() == '3': print('x')", json.dumps({"inputs": ["1", "2", "3"], "outputs": ["", "", "x"]}), 1,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def quick():
    return CodeVerifier(test_timeout_s=5.0, total_timeout_s=60.0, memory_mib=512)


@needs_sandbox
@pytest.mark.parametrize("case", AS_RELEASED)
def test_programs_are_judged_as_the_released_grader_does(case, quick):
    code, truth, reward = AS_RELEASED[case]
    assert quick.explain(fenced(code), truth)[0] == reward, quick.explain(fenced(code), truth)


REASONS = {
    "right": ("print(42)", r"1 of 1 tests passed"),
    "wrong": ("print(43)", r"0 of 1 tests passed; test 1 printed '43\\n' instead of '42\\n'"),
    "raises": ("1 / 0", r"test 1 ended with exit code 1: ZeroDivisionError: division by zero"),
    "exits": ("exit(3)", r"test 1 ended with exit code 3: it printed no error"),
    "slow": ("while True: pass", r"test 1 (was ended: it ran past 0.7 s|ended with exit code -9.*)"),
}


@needs_sandbox
@pytest.mark.parametrize("case", REASONS)
def test_the_reason_is_stated(case, strict):
    code, reason = REASONS[case]
    assert re.search(reason, strict.explain(fenced(code), SUM)[1])
    assert strict.explain("print(42)", SUM) == (0.0, "the response has no closed ```python block")


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
        outcomes = pool.verify_all(samples([(right, SUM), (fenced("print(1)"), SUM), (right, "no tests")]))
    assert [outcome.reward for outcome in outcomes[:2]] == [1.0, 0.0]
    assert outcomes[2].status is VerificationStatus.ERROR
