"""Start the SGLang servers of a configuration on this node, and start those that end again.

    python tools/rollout_servers.py examples/prime_70b_overlap.toml --host node7 --key-file server.key
    python tools/rollout_servers.py examples/prime_70b_overlap.toml --urls node7 node8

For nodes without training ranks, where the run starts no servers itself: it attaches to them by rollout.sglang.urls,
and gives them their weights. rollout.sglang.num_servers counts those of a node; they have the ports 30000, 30001, ...
The second form prints the override with their addresses, for `train`, and starts nothing. examples/prime_70b.sh does
both.

SIGTERM or Ctrl-C ends the servers. Exit code 1: one of them has ended more often than rollout.sglang.max_restarts
allows.
"""

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

from megatron_prime.config.loading import load_config
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.server_keys import attached_keys
from megatron_prime.engines.sglang.launch import (
    LaunchPlan,
    check_experts,
    check_quantization,
    install_quantized,
    install_receiver,
    served_folder,
    with_transport,
)
from megatron_prime.engines.sglang.nodes import start_servers
from megatron_prime.engines.sglang.server import ServerFailedError, SupervisedServer

FIRST_PORT = 30000
_POLL_S = 0.5


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="configuration of the run")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--host", help="name or address of this node, as the trainer's nodes reach it")
    parser.add_argument("--port", type=int, default=FIRST_PORT, help="port of the first server")
    parser.add_argument(
        "--key-file", type=Path, help="file with the servers' API key, which only you may read"
    )
    parser.add_argument(
        "--urls", nargs="+", metavar="NODE", help="print the override for servers on these nodes"
    )
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
        if options.urls:
            print(f"rollout.sglang.urls={json.dumps(urls(config, options.urls, options.port))}")
            return 0
        if options.host is None or options.key_file is None:
            raise ValueError("--host and --key-file are needed to start servers")
        plan = launch_plan(config, options.host, options.port, options.key_file)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return run(start_servers(plan, 0, config.run_dir / "sglang" / options.host, _say))


def urls(config: PrimeConfig, nodes: list[str], first_port: int = FIRST_PORT) -> list[str]:
    """Return the addresses of the servers on some nodes."""
    num_servers = config.rollout.sglang.num_servers
    return [f"http://{node}:{first_port + index}" for node in nodes for index in range(num_servers)]


def launch_plan(config: PrimeConfig, host: str, first_port: int, key_file: Path) -> LaunchPlan:
    """Return how this node's servers are started, after writing the files that they need.

    Raises:
        ValueError: the engine environment is missing, the key can't be used, or servers like these can't run.
    """
    device = "cpu" if config.platform.device == "cpu" else "cuda"
    own = {"urls": tuple(urls(config, [host], first_port)), "api_key_file": key_file}
    (api_key, *_) = attached_keys(config.rollout.sglang.model_copy(update=own))
    settings = config.rollout.sglang.model_copy(update={"urls": (), "colocated": False})
    if not settings.python.is_file():
        raise ValueError(
            f"rollout.sglang.python = {settings.python} does not exist: build it with `make sglang`"
        )
    settings = with_transport(settings, device, is_colocated=False)
    check_experts(settings, device)
    check_quantization(settings, device)
    folder, model_path = config.run_dir / "sglang" / host, config.model.path
    if settings.quantization == "fp8":
        model_path = install_quantized(model_path, folder / "quantized")
    elif settings.weight_transport == "disk":
        model_path = served_folder(model_path, folder / "model")
    return LaunchPlan(
        model_path,
        device,
        config.platform.dtype,
        config.seed,
        settings,
        host=host,
        loader_folder=install_receiver(folder / "loader"),
        api_key=api_key,
        first_port=first_port,
    )


def run(servers: list[SupervisedServer]) -> int:
    """Wait until the process is asked to end, or a server fails for good; end the servers, and return the exit code."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    code = 0
    try:
        while not asked.wait(_POLL_S):
            for server in servers:
                server.raise_if_failed()
    except ServerFailedError as error:
        _say(str(error))
        code = 1
    finally:
        for server in servers:
            server.ask_to_close()
        for server in servers:
            server.close()
    return code


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
