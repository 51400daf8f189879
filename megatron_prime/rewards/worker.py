"""The main program of a worker process of `VerifierPool`.

    main() with arguments TIMEOUT_S VERIFIER MODULE SETTINGS (JSON)

    pool:    FIELDS                           {"response_text": ..., "answer": ..., ...}
    worker:          {"fields": [names, ...]}                                            an outcome

The first request asks which fields of a `Sample` the verifier uses. The others have these alone, because a prompt or
the tokens of a response may be long.
"""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

from megatron_prime.workers.program import serve

FIELDS = "fields"
"""A request for {"fields": names}, or {"unusable": why} if the verifier cannot be called with the fields there are."""


def main() -> None:
    """Verify requests until stdin is closed.

    The arguments are the time limit in seconds, the name of a verifier, the module to import, which registers it, and
    its settings as JSON.
    """
    timeout_s, verifier_name, module, settings = sys.argv[1:5]

    def load() -> Callable[[Any], Any]:
        from megatron_prime.rewards import verifier as registry
        from megatron_prime.rewards.outcome import outcome_of_error
        from megatron_prime.sample import Sample

        importlib.import_module(module)
        verifier = registry.get(verifier_name, json.loads(settings))
        if isinstance(verifier, registry.WarmUp):
            verifier.warm_up()

        def answer(request: Any) -> Any:  # noqa: ANN401 - JSON values
            if request == FIELDS:
                try:
                    return {"fields": list(registry.fields_of(verifier))}
                except registry.UnusableVerifierError as error:
                    return {"unusable": str(error)}
            try:
                outcome = registry.run_verifier(verifier, Sample(**request))
            except BaseException as error:  # noqa: BLE001 - such as asyncio.CancelledError
                outcome = outcome_of_error(error)
            return outcome.as_message()

        return answer

    serve(load, float(timeout_s))
