"""A user's reward function, by import path: `reward.verifier = "my_package.my_module:my_function"`.

    def my_function(response_text: str, answer: str) -> float

`response_text` is what the policy wrote, without special tokens; `answer` the row's ground truth as text (objects as
JSON). The result is the reward, in [0, 1]: 1 right, 0 wrong, fractions as soft labels. It must be deterministic. An
exception, or a number outside [0, 1], means that no reward can be given: the outcome is an `error`, counted and never
trained on. The function runs in worker processes, is killed after reward.timeout_s, and may keep state in its module
(models, tables): that is imported once a worker, before its first response. See examples/custom_reward.py.
"""

import importlib
from collections.abc import Callable

FUNCTION = "function"
"""The registered name behind every import path; by itself it names no function."""


class UserFunction:
    """See the module's contract."""

    in_process = False

    def __init__(self, path: str = "") -> None:
        """`path` as in reward.verifier; nothing is imported yet.

        Raises:
            ValueError: not of the form module:function.
        """
        self._module, _, self._function = path.partition(":")
        if not self._module or not self._function:
            raise ValueError(
                f"reward.verifier = {path!r} is not of the form my_package.my_module:my_function"
            )
        self._call: Callable[[str, str], float] | None = None

    def warm_up(self) -> None:
        """Import the module.

        Raises:
            ImportError: there is no such module.
            AttributeError: it holds no such function.
        """
        self._call = getattr(importlib.import_module(self._module), self._function)

    def verify(self, response_text: str, answer: str) -> float:
        """The function's result."""
        if self._call is None:
            self.warm_up()
        assert self._call is not None
        return self._call(response_text, answer)
