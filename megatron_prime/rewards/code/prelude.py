"""Names that coding sites and the released grader provide without an import, for the programs that use them.

Each test starts an interpreter, and importing everything would take as long again. So a program gets the imports whose
names occur in its text, in the order of the released grader: later ones take precedence, then built-in names, then the
modules themselves, and last what the program defines.
"""

import builtins
import importlib
import re

MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "typing",
)  # fmt: skip
CLASSES = {
    "ListNode": """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next
""",
    "TreeNode": """
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val = val
        self.left = left
        self.right = right
""",
}
"""The classes of LeetCode's linked lists and trees."""
_WORD = re.compile(r"(?<![\w.])[^\W\d]\w*")
"""A name that is not an attribute of another."""


def _names(module: str) -> frozenset[str]:
    loaded = importlib.import_module(module)
    public = getattr(loaded, "__all__", None) or [name for name in vars(loaded) if not name.startswith("_")]
    return frozenset(public) - vars(builtins).keys()


_NAMES = {module: _names(module) for module in MODULES}
"""Names that `from module import *` adds to the built-in ones."""


def prelude_for(source: str) -> str:
    """Return the imports and classes that a program may take for granted."""
    words = set(_WORD.findall(source))
    # Of a name that is also built in, such as pow, the built-in one is meant.
    stars = [module for module in MODULES if not words.isdisjoint(_NAMES[module])]
    lines = [f"from {module} import *" for module in stars]
    lines += ["from builtins import *"] if stars else []
    lines += [f"import {module}" for module in MODULES if module in words]
    return "\n".join([*lines, *(text for name, text in CLASSES.items() if name in words)])
