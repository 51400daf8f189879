"""The command line, environment and files with which SGLang servers are started."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang import loader
from megatron_prime.engines.sglang.access import key_of
from megatron_prime.engines.sglang.loader.serve import KEY_VARIABLE
from megatron_prime.engines.sglang.loader.wire import BLOCK_SIZE
from megatron_prime.engines.sglang.resources import visible_gpus
from megatron_prime.engines.sglang.versions import launch_name
from megatron_prime.hf.config_json import read_config_json
from megatron_prime.hf.headers import INDEX_NAME, weight_file_names
from megatron_prime.hf.serving import cache_tokens
from megatron_prime.hf.shape import ModelShape
from megatron_prime.observability.durable import make_private, replace_file

HOST = "127.0.0.1"
_RECEIVER = "megatron_prime_receiver"
LOADER = f"{_RECEIVER}.receive"
"""Value of a server's --custom-weight-loader that lets weights come from the trainer's memory."""
CPU_KV_TOKENS = 32768
"""Tokens in the KV cache of a server on a CPU, where SGLang's share of the whole memory would be too much."""
_JOB_PREFIXES = ("TORCHELASTIC_", "SLURM_", "PMI_", "PMIX_", "OMPI_", "NCCL_ASYNC", "TORCH_NCCL_")
_JOB_NAMES = frozenset(
    (
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
        *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
        *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "TORCHDYNAMO_DISABLE"),
        # It would make the server return log-probs at temperature 1.
        "SGLANG_RETURN_ORIGINAL_LOGPROB",
        # SGLang's memory saver refuses an allocator with expandable segments, which a trainer may well want.
        *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
    )
)
"""Variables of the training job that servers must not see."""


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """The common settings of one engine's servers."""

    model_path: Path
    """HF checkpoint of the architecture; servers have its weights until the first sync."""
    device: str
    """Device of the servers: cpu or cuda."""
    dtype: str
    """Type of the served weights: fp32 or bf16."""
    seed: int
    settings: SGLangConfig
    is_colocated: bool = False
    """True if the servers share their GPUs with training ranks and must be able to free memory."""
    host: str = HOST
    """Address that the servers listen on: one of their node that rank 0's node can reach."""
    node_gpus: tuple[str, ...] = ()
    """Names of the node's GPUs for CUDA_VISIBLE_DEVICES; by default those that the starting process sees."""
    cores: tuple[int, ...] = ()
    """Cores that the servers may use, all of the job on the node; by default those of the starting process."""
    loader_folder: Path | None = None
    """Folder made by `install_receiver`; None for servers that load weights only from files and need no API key."""
    secret: str = field(default="", repr=False)
    """The run's secret, from which the servers' API keys follow; empty for servers without keys."""
    api_key: str = field(default="", repr=False)
    """The API key of all servers; empty if each has one of its own, which follows from the secret."""
    first_port: int | None = None
    """Port of server 0, which the others follow; None for free ports, other ones at each start."""

    def command(self, server_index: int, port: int) -> list[str]:
        """Return the server's command line."""
        settings = self.settings
        options = {
            "--model-path": str(self.model_path),
            "--host": self.host,
            "--port": str(port),
            "--device": self.device,
            "--dtype": {"fp32": "float32", "bf16": "bfloat16"}[self.dtype],
            "--tp-size": str(settings.tensor),
            "--ep-size": str(settings.expert),
            "--random-seed": str((self.seed + server_index) % (1 << 31)),
            "--max-running-requests": str(settings.concurrency),
            "--log-level-http": "warning",
            "--weight-version": launch_name(),
        }
        options |= self._device_options()
        num_kv_tokens = settings.max_total_tokens or (CPU_KV_TOKENS if self.device == "cpu" else None)
        if num_kv_tokens is not None:
            options["--max-total-tokens"] = str(num_kv_tokens)
        # Token ids go in and out, so that trainer and server can't disagree about the tokenizer.
        # Without sleep-on-idle each idle scheduler polls, and takes a core from the trainer.
        switches = ["--skip-tokenizer-init", "--skip-server-warmup", "--sleep-on-idle"]
        if self.device == "cpu":
            switches.append("--disable-overlap-schedule")
        if settings.routing_replay:
            switches.append("--enable-return-routed-experts")
        if settings.weight_transport != "disk":
            # The first sync brings the weights. To read them from the checkpoint as well would take minutes of a
            # shared file system on a large job, and the checkpoint of a quantized server does not even have them.
            options["--load-format"] = "dummy"
        if settings.deterministic:
            switches.append("--enable-deterministic-inference")
        if self.is_colocated and self.device == "cuda":
            switches.append("--enable-memory-saver")
        if self.loader_folder is not None:
            switches += ["--custom-weight-loader", LOADER]
        flat = [word for option in options.items() for word in option]
        # Not resolved: a virtual environment's interpreter is a link, and Python finds the environment by its path.
        python = str(settings.python.absolute())
        has_gate = self.loader_folder is not None and self.has_keys
        module = f"{_RECEIVER}.serve" if has_gate else "sglang.launch_server"
        # argparse takes the last of a repeated option, so that extra_args override.
        return [python, "-m", module, *flat, *switches, *settings.extra_args]

    @property
    def has_keys(self) -> bool:
        """Whether the servers refuse calls without an API key."""
        return bool(self.secret or self.api_key)

    def key_variables(self, url: str) -> dict[str, str]:
        """Return the environment variable that gives its API key to the server at an address."""
        return {KEY_VARIABLE: self.api_key or key_of(self.secret, url)} if self.has_keys else {}

    def environment(self, server_index: int, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return a server's environment: the trainer's without the variables of its job."""
        environment = {
            name: value
            for name, value in inherited.items()
            if name not in _JOB_NAMES and not name.startswith(_JOB_PREFIXES)
        }
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.loader_folder is not None:
            environment["PYTHONPATH"] = str(self.loader_folder.absolute())
        if self.device == "cpu":
            # Compiling would need a C++ compiler, and for models small enough for CPUs it costs more than it saves.
            environment |= {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
            if self.settings.tensor > 1:
                # SGLang requires one binding per rank, and by default would pin ranks to whole NUMA nodes.
                cores = self.cores or range(self.settings.tensor)
                bound = (cores[rank % len(cores)] for rank in range(self.settings.tensor))
                environment.setdefault("SGLANG_CPU_OMP_THREADS_BIND", "|".join(map(str, bound)))
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus(server_index, inherited))
            # SGLang ends servers on GPUs whose free memory differs, and training ranks may hold different amounts.
            environment.setdefault("SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK", "0")
            # Otherwise the memory saver leaves CUDA graphs in place, 1 to 3 GiB, when memory is released.
            environment.setdefault("SGLANG_MEMORY_SAVER_CUDA_GRAPH", "1")
        return environment

    def _device_options(self) -> dict[str, str]:
        if self.device == "cpu":
            return {
                "--attention-backend": "torch_native",
                "--sampling-backend": "pytorch",
                "--grammar-backend": "none",
            }
        return {"--mem-fraction-static": str(self.settings.mem_fraction)}

    def gpus(self, server_index: int, inherited: Mapping[str, str]) -> list[str]:
        """Return the GPUs of one server on its node, as CUDA_VISIBLE_DEVICES names them."""
        gpus = self.settings.server_gpus(server_index)
        if self.settings.gpu_ids:
            return [str(gpu) for gpu in gpus]
        # A trainer that sees only its own GPU cannot tell the names of the other GPUs of the node.
        return gpu_names(gpus, self.visible(inherited), self.num_gpus)

    @property
    def num_gpus(self) -> int:
        """Number of GPUs of a node's servers."""
        return self.settings.num_servers * self.settings.tensor

    def visible(self, inherited: Mapping[str, str]) -> tuple[str, ...]:
        """Return the known names of the node's GPUs, those of training ranks first; none if they are just numbered."""
        return self.node_gpus or visible_gpus(inherited)


def gpu_names(places: Iterable[int], visible: Sequence[str], num_needed: int = 1) -> list[str]:
    """Return the names of some GPUs of the node for CUDA_VISIBLE_DEVICES.

    Args:
        places: indices among the visible GPUs.
        visible: names of the GPUs that are known.
        num_needed: if fewer GPUs are known, the indices are used as names.
    """
    is_known = len(visible) >= num_needed
    return [visible[place] if is_known and place < len(visible) else str(place) for place in places]


def with_transport(settings: SGLangConfig, device: str, is_colocated: bool) -> SGLangConfig:
    """Return settings in which rollout.sglang.weight_transport is decided: ipc on shared GPUs, otherwise shards."""
    if settings.weight_transport is not None:
        return settings
    transport = "ipc" if is_colocated and device == "cuda" else "shards"
    return settings.model_copy(update={"weight_transport": transport})


def with_cache_size(settings: SGLangConfig, shape: ModelShape, gpu_bytes: int) -> SGLangConfig:
    """Return settings with a fixed size of the KV cache, for servers that share GPUs with the trainer.

    SGLang would size it once, by the memory that happens to be free when a server starts.
    """
    if settings.max_total_tokens is not None:
        return settings
    tokens = cache_tokens(shape, settings.tensor, int(settings.mem_fraction * gpu_bytes))
    # With no room left, SGLang's own error says so.
    return settings.model_copy(update={"max_total_tokens": tokens or None})


def check_transport(plan: LaunchPlan) -> None:
    """Raise ValueError if these servers can't get their weights by the transport `shards`."""
    if plan.is_colocated and plan.device == "cuda":
        raise ValueError(
            "rollout.sglang.weight_transport = 'shards' uses NCCL, which refuses two ranks on one GPU: set it to "
            "'ipc', or give the servers GPUs of their own by rollout.sglang.gpu_ids"
        )


def install_quantized(model_path: Path, folder: Path) -> Path:
    """Write a description of the model in block FP8, without weights, which come from the trainer; return `folder`."""
    make_private(folder)
    for source in model_path.iterdir():
        if source.is_file() and "safetensors" not in source.name and not source.name.endswith(".bin"):
            replace_file(folder / source.name, source.read_bytes())
    config = read_config_json(model_path)
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK_SIZE, BLOCK_SIZE],
    }
    replace_file(folder / "config.json", json.dumps(config, indent=1))
    return folder


def served_folder(model_path: Path, links: Path) -> Path:
    """Return the folder from which servers load a checkpoint: its own, or one of links to the files that belong to it.

    SGLang would also read weights of other formats beside model.safetensors, which the trainer ignores.
    """
    try:
        names = weight_file_names(model_path)
    except ValueError:
        return model_path  # SGLang's own error says so
    weights = {path.name for path in model_path.glob("*.safetensors")}
    if weights <= set(names) or (model_path / INDEX_NAME).is_file():
        return model_path
    make_private(links)
    sources = [
        path for path in model_path.iterdir() if path.is_file() and path.name not in weights - set(names)
    ]
    for stale in {path.name for path in links.iterdir()} - {path.name for path in sources}:
        (links / stale).unlink(missing_ok=True)
    for source in sources:
        # Several nodes may link the same files at once.
        aside = links / f".{uuid.uuid4().hex}"
        aside.symlink_to(source.absolute())
        aside.replace(links / source.name)
    return links


def check_quantization(settings: SGLangConfig, device: str) -> None:
    """Raise ValueError if these servers could not serve in FP8."""
    if settings.quantization == "fp8" and device == "cpu":
        raise ValueError(
            "rollout.sglang.quantization = 'fp8' needs GPUs: SGLang's FP8 layers run on no CPU without AMX; set it to "
            "'none'"
        )


def check_experts(settings: SGLangConfig, device: str) -> None:
    """Raise ValueError if these servers could start but would die at their first request."""
    if settings.expert > 1 and device == "cpu":
        raise ValueError(
            f"rollout.sglang.expert = {settings.expert}: SGLang 0.5.23 cannot compute with split experts on a CPU; set "
            "it to 1 (experts are then split by rollout.sglang.tensor)"
        )


def install_receiver(folder: Path) -> Path:
    """Copy the package `loader` into a folder from which servers can import it as `LOADER`; return the folder.

    The folder has nothing else, because the engine environment must not see the trainer's packages.
    """
    package = folder / _RECEIVER
    make_private(package)
    for source in sorted(Path(loader.__file__).parent.glob("*.py")):
        # Servers of an earlier start may be importing the file, so it must never be seen half-written.
        replace_file(package / source.name, source.read_bytes())
    return folder
