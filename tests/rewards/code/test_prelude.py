# ruff: noqa: E501 - the programs are data
import sys

import pytest

from megatron_prime.rewards.code.prelude import MODULES, prelude_for

USES = {
    # a program without an import -> the value of its variable x
    "gcd": ("x = gcd(12, 18)", 6),
    "the module": ("x = math.gcd(12, 18)", 6),
    "both": ("x = sqrt(4) + math.sqrt(4)", 4.0),
    "built-in pow": ("x = pow(2, 10, 1000) + int(sqrt(4))", 26),
    "built-in abs and open": ("x = (abs(-3 + 0j), open is __builtins__['open'], mul(2, 3))", (3.0, True, 6)),
    "typing": ("def f(a: List[int], b: Optional[str] = None) -> Dict[str, int]: return a\nx = f([1])", [1]),
    "collections": ("x = Counter('aab')['a'] + len(deque([1])) + defaultdict(int)[0]", 3),
    "a name of two modules": ("x = sub(5, 2)", 3),
    "modules and their names": ("x = (datetime.date(2024, 1, 2).day, copy.copy([1]), random.Random(0).random() < 1)", (2, [1], True)),
    "functools": ("@lru_cache(None)\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)\nx = f(10) + reduce(add, [1, 2])", 58),
    "heap and bisection": ("a = [3, 1]\nheapify(a)\nx = (heappop(a), bisect_left([1, 3], 2), accumulate([1, 2]) and inf > 1)", (1, 1, True)),
    "own names": ("def gcd(a, b): return 100\nx = gcd(1, 1)", 100),
    "a linked list": ("x = ListNode(1, ListNode(2)).next.val", 2),
    "a tree": ("x = TreeNode(1, None, TreeNode(3)).right.val", 3),
    "own nodes": ("class ListNode:\n    def __init__(self, v): self.v = v\nx = ListNode(5).v", 5),
}  # fmt: skip


@pytest.mark.parametrize("case", USES)
def test_a_program_need_not_import_what_sites_provide(case):
    source, expected = USES[case]
    names = {}
    exec(prelude_for(source), names)
    exec(source, names)
    assert names["x"] == expected


def test_nothing_is_imported_in_vain():
    assert prelude_for("a, b = map(int, input().split())\nprint(a + b)") == ""
    assert prelude_for("print(gcd(1, 2))") == "from math import *\nfrom builtins import *"
    assert set(MODULES) <= sys.stdlib_module_names
