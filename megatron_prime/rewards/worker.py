"""The main program of a worker process of `VerifierPool`.

main() with arguments TIMEOUT_S VERIFIER MODULE SETTINGS (JSON)
"""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

from megatron_prime.workers.program import serve


def main() -> None:
    """Verify requests until stdin is closed.

    The arguments are the time limit in seconds, the name of a verifier, the module to import, which registers it, and
    its settings as JSON.
    """
    timeout_s, verifier_name, module, settings = sys.argv[1:5]

    def load() -> Callable[[Any], Any]:
        from megatron_prime.rewards import verifier as registry
        from megatron_prime.rewards.outcome import outcome_of_error

        importlib.import_module(module)
        verifier = registry.get(verifier_name, json.loads(settings))
        if isinstance(verifier, registry.WarmUp):
            verifier.warm_up()

        def answer(request: Any) -> Any:  # noqa: ANN401 - JSON values
            try:
                outcome = registry.run_verifier(verifier, request["response_text"], request["answer"])
            except BaseException as error:  # noqa: BLE001 - such as asyncio.CancelledError
                outcome = outcome_of_error(error)
            return outcome.as_message()

        return answer

    serve(load, float(timeout_s))
