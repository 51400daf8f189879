"""Verification by a user's function: `reward.verifier = "my_package.my_module:my_function"`.

    def my_function(response_text: str, answer: str) -> float

`response_text` is the policy's text without special tokens, and `answer` is the ground truth of the row as text
(objects as JSON). The function returns the reward in [0, 1]: 1 is right, 0 is wrong, and fractions are soft labels. It
must be deterministic. An exception or a number outside [0, 1] means that no reward can be given: the outcome is an
`error`, which is counted and never trained on.

The function runs in worker processes and is killed after reward.timeout_s. It may keep state in its module, such as
models or tables: each worker imports the module once, before its first response. See examples/custom_reward.py.
"""

import importlib
from collections.abc import Callable

FUNCTION = "function"
"""Registered name of the verifier for import paths; it needs a path and cannot be used as reward.verifier itself."""


class UserFunction:
    """Verifier by a user's function; see the module's docstring."""

    in_process = False

    def __init__(self, path: str = "") -> None:
        """Keep the import path, as in reward.verifier; nothing is imported yet.

        Raises:
            ValueError: If the path is not of the form module:function.
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
            ImportError: If there is no such module.
            AttributeError: If the module has no such function.
        """
        # The import happens in the worker and not in the trainer, so that the user's module and what it loads stay
        # out of the training process.
        self._call = getattr(importlib.import_module(self._module), self._function)

    def verify(self, response_text: str, answer: str) -> float:
        """Return the function's result."""
        if self._call is None:
            self.warm_up()
        assert self._call is not None
        return self._call(response_text, answer)
