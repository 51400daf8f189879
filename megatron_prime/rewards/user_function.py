"""Verification by a user's function: `reward.verifier = "my_package.my_module:my_function"`.

    def my_function(response_text: str, answer: str) -> float
    def my_function(response_text: str, answer: str, messages, metadata) -> float

`response_text` is the policy's text without special tokens, and `answer` is the ground truth of the row as text
(objects as JSON). A function that names more of the fields of `Sample` gets them by name; one with `**kwargs` behind
its first two parameters gets all of them. The function returns the reward in [0, 1]: 1 is right, 0 is wrong, and
fractions are soft labels. It must be deterministic. An exception or a number outside [0, 1] means that no reward can be
given: the outcome is an `error`, which is counted and never trained on.

The function runs in worker processes and is killed after reward.timeout_s. It may keep state in its module, such as
models or tables: each worker imports the module once, before its first response. See examples/custom_reward.py.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from megatron_prime.rewards.verifier import TEXTS, UnusableVerifierError
from megatron_prime.sample import Sample

FUNCTION = "function"
"""Registered name of the verifier for import paths; it needs a path and cannot be used as reward.verifier itself."""
FURTHER_FIELDS = tuple(each.name for each in fields(Sample) if each.name not in TEXTS)
"""Fields that a function may ask for by name, besides its first two parameters."""
_TWO = "the response text and the answer"


class UserFunction:
    """Verifier by a user's function; see the module's docstring."""

    in_process = False

    def __init__(self, path: str = "") -> None:
        """Keep the import path, as in reward.verifier; nothing is imported yet.

        Raises:
            ValueError: If the path is not of the form module:function.
        """
        self._path = path
        self._module, _, self._function = path.partition(":")
        if not self._module or not self._function:
            raise ValueError(
                f"reward.verifier = {path!r} is not of the form my_package.my_module:my_function"
            )
        self._call: Callable[..., float] | None = None
        self._asked: tuple[str, ...] = ()

    def warm_up(self) -> None:
        """Import the module.

        Raises:
            ImportError: If there is no such module.
            AttributeError: If the module has no such function.
        """
        # The import happens in the worker and not in the trainer, so that the user's module and what it loads stay
        # out of the training process.
        call: Any = importlib.import_module(self._module)
        for name in self._function.split("."):
            call = getattr(call, name)
        self._call = call

    def fields(self) -> Sequence[str]:
        """Return the fields that the function gets.

        Raises:
            UnusableVerifierError: If the function cannot be called with the fields that there are.
        """
        if self._call is None:
            self.warm_up()
        try:
            self._asked = asked_fields(self._call)
        except ValueError as error:
            raise UnusableVerifierError(f"reward.verifier = {self._path!r}: {error}") from error
        return *TEXTS, *self._asked

    def verify(self, response_text: str, answer: str) -> float:
        """Return the function's result for a sample of which nothing else is known."""
        return self.verify_sample(Sample(response_text, answer))

    def verify_sample(self, sample: Sample) -> float:
        """Return the function's result."""
        if self._call is None:
            self.fields()
        assert self._call is not None
        asked = {name: getattr(sample, name) for name in self._asked}
        if "turns" in asked:
            asked["turns"] = [tuple(turn) for turn in asked["turns"]]  # JSON has made lists of them
        return self._call(sample.response_text, sample.answer, **asked)


def asked_fields(function: object) -> tuple[str, ...]:
    """Return the fields of a sample that a function asks for by the names of its parameters.

    Raises:
        ValueError: If it cannot be called with response text, answer and these fields.
    """
    if not callable(function):
        raise ValueError(f"it is no function, but of the type {type(function).__name__}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return ()  # functions written in C may not say what they take
    by_place = [
        each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    takes_any_number = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    first = by_place[:2]
    names = [each.name for each in first]
    is_another = names[:1] == ["answer"] or names[1:] == ["response_text"] or {*names} & {*FURTHER_FIELDS}
    if is_another or (len(first) < 2 and not takes_any_number):
        raise ValueError(
            f"its first two parameters must take {_TWO}, in this order; they are {', '.join(names) or 'none'}"
        )
    asked: list[str] = []
    for each in parameters:
        if each in first or each.kind is each.VAR_POSITIONAL:
            continue
        if each.kind is each.VAR_KEYWORD:
            # Without two parameters in front it is a decorator's (*args, **kwargs), whose function may take two.
            asked += FURTHER_FIELDS if len(first) == 2 else ()
        elif each.name in FURTHER_FIELDS and each.kind is not each.POSITIONAL_ONLY:
            asked.append(each.name)
        elif each.default is each.empty:
            raise ValueError(
                f"there is nothing for its parameter {each.name!r}: behind {_TWO} it may name "
                f"{', '.join(FURTHER_FIELDS)}, **kwargs for all of them, and parameters with a default"
            )
    return tuple(dict.fromkeys(asked))
