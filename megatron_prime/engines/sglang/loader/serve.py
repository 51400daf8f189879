"""Start an SGLang server that refuses calls without a key: `python -m PACKAGE.serve ARGUMENTS OF SGLANG`.

SGLang's own `--api-key` would show the key to every user of the machine, and SGLang writes its arguments to its log.
Here the key comes from the environment, which only the owner of a process can read, and goes to no argument.
"""

import importlib
import os
import sys

KEY_VARIABLE = "MEGATRON_PRIME_SERVER_KEY"
"""Environment variable with the key."""


def main() -> None:
    """Run the server until it ends."""
    # Removed from the environment, so that no child of the server inherits it.
    key = os.environ.pop(KEY_VARIABLE)
    # These are the steps of `python -m sglang.launch_server`, with one in between.
    sglang = {
        name: importlib.import_module(f"sglang.{name}")
        for name in ("launch_server", "srt.plugins", "srt.server_args", "srt.utils")
    }
    sglang["srt.plugins"].load_plugins()
    arguments = sglang["srt.server_args"].prepare_server_args(sys.argv[1:])
    try:
        # SGLang imports its HTTP server after it has resolved the arguments.
        arguments.resolve_once()
        app = importlib.import_module("sglang.srt.entrypoints.http_server").app
        auth = importlib.import_module("sglang.srt.utils.auth")
        auth.add_api_key_middleware(app, api_key=key, admin_api_key=None)
        sglang["launch_server"].run_server(arguments)
    finally:
        sglang["srt.utils"].kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
