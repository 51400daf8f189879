"""The first program in the sandbox: sets limits, drops the uid, reports that it is ready, and runs the code under test.

    python -c <this file> SETTINGS

It uses the standard library only, because this package is not available inside the sandbox. READY is written to
standard output before any code under test runs, so that its absence means that the sandbox failed and not the code.

With `call` in the settings, a function of the code is called with the JSON arguments on standard input, and its result
is written to standard output as JSON; the code's own output is discarded. Lists become linked lists or trees where an
annotation names LeetCode's ListNode or TreeNode, and dictionaries whose keys are all integers get integer keys. A
function that is annotated to return None changes its first argument in place, which then is the result.
The code could forge that result, but not usefully: the expected result never enters the sandbox.
"""

import json
import os
import resource
import sys
from typing import Any

NODES = ("ListNode", "TreeNode")
READY = b"\x06"

RECURSION_LIMIT = 600_000
"""The released grader's; since Python 3.11 a call in Python needs no stack of C."""


def main() -> None:
    """Set the limits and run the code under test."""
    settings = json.loads(sys.argv[1])
    for name, value in settings["rlimits"].items():
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # The hard limit is lowered as well, because a process may raise its soft limit up to the hard one.
        resource.setrlimit(number, (limit, limit))
    if settings["uid"] is not None:
        # Groups come first: once the uid is dropped, the process may no longer change them.
        os.setgroups([])
        os.setresgid(settings["uid"], settings["uid"], settings["uid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    with open(settings["code"], encoding="utf-8") as file:
        source = file.read()
    os.chdir(settings["folder"])
    # This is written to the descriptor itself, because sys.stdout would keep it in a buffer until the end.
    os.write(1, READY)
    sys.argv = ["solution.py"]
    sys.setrecursionlimit(RECURSION_LIMIT)
    # Python refuses to print integers of more than 4300 digits; time is limited already.
    sys.set_int_max_str_digits(0)
    if settings["call"] is None:
        run(source, "__main__", settings["prelude"])
    else:
        call(source, settings["call"], settings["prelude"])


def run(source: str, name: str, prelude: str) -> dict[str, Any]:
    """Execute the code as a module of that name, with the names of `prelude`, and return its globals."""
    module = type(sys)(name)
    # dataclasses and pickle look up the module of a class by its name here.
    sys.modules[name] = module
    exec(prelude, module.__dict__)
    exec(compile(source, "solution.py", "exec"), module.__dict__)
    return module.__dict__


def call(source: str, function: str, prelude: str) -> None:
    """Print the JSON of `function(*arguments)`, or of `Solution().function(*arguments)` if there is such a method."""
    arguments = [with_integer_keys(argument) for argument in json.loads(sys.stdin.readline())]
    result_fd = os.dup(1)
    # From here on the code can neither read the arguments again nor print into the result.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    names = run(source, "solution", prelude)
    owner = names.get("Solution")
    target = getattr(owner(), function) if callable(owner) and hasattr(owner, function) else names[function]
    kinds, result_kind = annotations_of(target)
    built = [build(argument, kind, names) for argument, kind in zip(arguments, kinds, strict=False)]
    built += arguments[len(built) :]
    result = target(*built)
    if result is None and result_kind == "None" and built:
        result = built[0]
    if any(name in result_kind for name in NODES):
        result = with_empty_nodes(result)
    with os.fdopen(result_fd, "w") as file:
        file.write(json.dumps(result, default=plain))


def with_integer_keys(value: Any) -> Any:  # noqa: ANN401 - JSON values
    """Return a dictionary whose keys are all integers with integers as keys, which JSON has made text."""
    if isinstance(value, dict):
        try:
            # A text such as "007" was no integer.
            if all(str(int(key)) == key for key in value):
                return {int(key): item for key, item in value.items()}
        except ValueError:
            return value
    return value


def annotations_of(target: Any) -> tuple[list[str], str]:  # noqa: ANN401 - any callable
    """Return the annotations of the positional parameters of a function or method as text, and that of its result."""
    # It takes some milliseconds to import, which only calls need.
    import inspect

    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # a built-in function
        return [], ""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    kinds = [str(each.annotation) for each in signature.parameters.values() if each.kind in positional]
    return kinds, str(signature.return_annotation)


def build(value: Any, kind: str, names: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON values
    """Return the linked list or tree of a list if the parameter's annotation names one, else the value itself."""
    name = next((name for name in NODES if name in kind), None)
    if name is None or name not in names or not isinstance(value, list):
        return value
    if "list[" in kind.lower():
        return [build(item, name, names) for item in value]
    return linked(value, names[name]) if name == "ListNode" else tree(value, names[name])


def linked(values: list[Any], node: Any) -> Any:  # noqa: ANN401 - a class of the code under test
    """Return the first node of a linked list."""
    first = None
    for value in reversed(values):
        new = node(value)
        new.next = first
        first = new
    return first


def tree(values: list[Any], node: Any) -> Any:  # noqa: ANN401 - a class of the code under test
    """Return the root of the tree with these values, level by level, with None where there is no node."""
    nodes = [None if value is None else node(value) for value in values]
    rest = iter(nodes[1:])
    for parent in nodes:
        if parent is not None:
            parent.left, parent.right = next(rest, None), next(rest, None)
    return nodes[0] if nodes else None


def with_empty_nodes(result: Any) -> Any:  # noqa: ANN401 - results of the code under test
    """Return a result with [] in place of None, as LeetCode writes a list or tree without nodes."""
    if isinstance(result, list):
        return [with_empty_nodes(item) for item in result]
    return [] if result is None else result


def plain(value: Any) -> Any:  # noqa: ANN401 - results of the code under test
    """Return what JSON cannot hold as what it can.

    Numbers of other types become plain ones, linked lists and trees the lists that LeetCode writes, and other iterables
    become lists.
    """
    if hasattr(value, "tolist"):  # values of numpy
        return value.tolist()
    if hasattr(value, "__float__"):  # fractions and decimal numbers
        return float(value)
    if hasattr(value, "val") and hasattr(value, "next"):
        values = []
        while value is not None:
            values.append(value.val)
            value = value.next
        return values
    if hasattr(value, "val") and hasattr(value, "left"):
        values, level = [], [value]
        while any(level):
            values += [None if node is None else node.val for node in level]
            level = [child for node in level if node is not None for child in (node.left, node.right)]
        while values[-1] is None:
            values.pop()
        return values
    # The data sets hold JSON, so tuples and sets in a result are compared as lists.
    return list(value)


if __name__ == "__main__":
    main()
