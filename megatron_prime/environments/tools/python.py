"""A Python interpreter for the policy: each call is a program of its own in the sandbox of the code verifier.

The limits are those of [reward.code]: time (test_timeout_s), memory, processes, disk. There is no network, and nothing
is kept from one call to the next.
"""

from collections.abc import Mapping
from typing import Any

from megatron_prime.config.tables.reward import CodeConfig
from megatron_prime.environments.toolbox import ToolFailureError
from megatron_prime.rewards.code.sandbox import Sandbox, SandboxError


class Tool:
    """The tool `python`.

    Args:
        code: The table [reward.code] as JSON values.

    Raises:
        ValueError: The sandbox is not installed.
    """

    schema: Mapping[str, Any] = {
        "type": "function",
        "function": {
            "name": "python",
            "description": "Run a Python program and return what it prints. Nothing is kept between calls.",
            "parameters": {
                "type": "object",
                "properties": {"code": {"type": "string", "description": "The program. Print the results."}},
                "required": ["code"],
            },
        },
    }

    def __init__(self, code: Mapping[str, Any]) -> None:
        self._config = CodeConfig.model_validate(code)
        self._sandbox = Sandbox(self._config)

    async def call(self, arguments: Mapping[str, Any], seconds: float) -> str:
        """Return what the program prints, followed by its error.

        Raises:
            ToolFailureError: The sandbox does not start.
        """
        limit = min(self._config.test_timeout_s, seconds)
        try:
            completed = self._sandbox.run(arguments["code"], b"", limit)
        except SandboxError as error:
            raise ToolFailureError(str(error)) from error
        printed = completed.stdout.decode(errors="replace").rstrip()
        if completed.exit_code is None:
            return f"{printed}\nError: {completed.detail}".lstrip()
        if completed.exit_code != 0:
            return f"{printed}\n{completed.detail or f'Error: exit code {completed.exit_code}'}".lstrip()
        return printed or "(The program printed nothing.)"
