"""[rollout] and [rollout.sglang]: how responses are sampled, and the servers that sample them."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from megatron_prime.config.section import NonNegative, Positive, PositiveFloat, Section, UserPath

SGLANG_RESERVED_POSITIONS = 2
"""Positions at the end of the context that SGLang keeps: it silently truncates a response that would reach them."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class SGLangConfig(Section):
    """SGLang servers for the rollouts: started on the job's nodes, or attached to by URL."""

    python: UserPath = Path(".venv-sglang/bin/python")
    """Interpreter of the engine environment; `make sglang` builds the default one."""
    urls: tuple[str, ...] = ()
    """Servers that run already, such as http://node7:30000; none are started then."""
    num_servers: Positive = 1
    """Servers to start on a node."""
    nodes: Literal["first", "all"] = "first"
    """Where servers start: on the node of rank 0, or on every node of the job."""
    tensor: Positive = 1
    """Tensor-parallel size of each server, attached ones included."""
    expert: Positive = 1
    """Expert-parallel size of each server: divides its tensor-parallel size."""
    weight_transport: Literal["shards", "ipc", "disk"] = "shards"
    """How new weights travel: slices from the training ranks' memory by gloo or NCCL; the same by memory that trainer
    and servers of one node share, on the same GPUs too; or an HF checkpoint on disk."""
    quantization: Literal["none", "fp8"] = "none"
    """fp8: linear layers in blocks of 128 x 128, quantized where their slices are sent from; needs GPUs."""
    weight_full_check_every: NonNegative = 0
    """Every so many syncs each parameter is compared with SGLang's /weights_checker; 0: our checksums alone, always."""
    weight_bucket_mib: Positive = 256
    """Most MiB of weights that a server's rank gets at a time."""
    gpu_ids: tuple[NonNegative, ...] = ()
    """GPUs of a node's servers, num_servers * tensor of them; default 0, 1, 2, ... (shared with the trainer)."""
    colocated: bool | None = None
    """Servers give their memory up while the trainer trains; default: those that we start on GPUs of training ranks."""
    mem_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of a GPU's memory for the server's weights and KV cache."""
    max_total_tokens: Positive | None = None
    """Tokens in a server's KV cache; default as mem_fraction allows, and 32768 on a CPU."""
    concurrency: Positive = 256
    """Responses in flight a server."""
    request_timeout_s: PositiveFloat = 1800.0
    """Deadline of one response, its time in the server's queue included."""
    control_timeout_s: PositiveFloat = 300.0
    """Deadline of one control call, such as an update of the weights."""
    startup_timeout_s: PositiveFloat = 600.0
    """Deadline for a server to load the model and answer."""
    max_restarts: NonNegative = 3
    """Restarts of a server in a row, each within ten minutes of the last, before the run stops."""
    deterministic: bool = False
    """Seeded sampling that a resumed run repeats; needs a GPU, and is slower."""
    routing_replay: bool = False
    """Train the policy with the experts that the servers chose for each token; a mixture of experts alone."""
    allow_mixed_versions: bool = False
    """Keep groups whose responses were sampled by different weights."""
    extra_args: tuple[str, ...] = ()
    """More arguments of `python -m sglang.launch_server`; they override ours."""

    def server_gpus(self, server: int) -> tuple[int, ...]:
        """Return the GPUs of one of a node's servers, counted over the node."""
        first = server % self.num_servers * self.tensor
        places = range(first, first + self.tensor)
        return tuple(self.gpu_ids[place] for place in places) if self.gpu_ids else tuple(places)

    def is_colocated_on(self, training_gpus: Collection[object], server_gpus: Iterable[object]) -> bool:
        """Return whether servers give their memory up while the trainer trains.

        That is what `colocated` says; by default, servers that we start share memory with the trainer if they use one
        of its GPUs.
        """
        if self.colocated is not None:
            return self.colocated
        return not self.urls and any(gpu in training_gpus for gpu in server_gpus)

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        num_gpus = self.num_servers * self.tensor
        if self.gpu_ids and (len(self.gpu_ids) != num_gpus or len(set(self.gpu_ids)) != num_gpus):
            raise ValueError(
                f"gpu_ids = {list(self.gpu_ids)} must be num_servers * tensor = {num_gpus} different GPUs"
            )
        return self

    @model_validator(mode="after")
    def _check_quantization(self) -> Self:
        if self.quantization != "none" and self.weight_transport == "disk":
            raise ValueError(
                "quantization = 'fp8' happens at the senders: set weight_transport to 'shards' or 'ipc'"
            )
        if self.quantization != "none" and self.weight_full_check_every:
            raise ValueError(
                "weight_full_check_every needs servers on a CPU, and quantization = 'fp8' needs GPUs"
            )
        return self

    @model_validator(mode="after")
    def _check_expert(self) -> Self:
        if self.tensor % self.expert:
            raise ValueError(f"expert = {self.expert} must divide tensor = {self.tensor}")
        return self

    @model_validator(mode="after")
    def _check_urls(self) -> Self:
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} in urls must begin with http:// or https://")
        if len(set(self.urls)) != len(self.urls):
            raise ValueError("urls names a server twice")
        elsewhere = [url for url in self.urls if urlsplit(url).hostname not in _LOOPBACK]
        if self.weight_transport == "ipc" and elsewhere:
            raise ValueError(
                f"weight_transport = 'ipc' reaches servers on the trainer's own node alone, such as "
                f"http://127.0.0.1:30000, and not {elsewhere[0]}: use 'shards'"
            )
        return self


class RolloutConfig(Section):
    """How responses are sampled from the policy."""

    engine: Literal["local", "sglang"] = "local"
    """Rollout engine; local runs inside the training processes, sglang in servers beside them."""
    sglang: SGLangConfig = SGLangConfig()
    group_size: Positive = 4
    """Responses a prompt (the paper's K)."""
    max_prompt_tokens: Positive = 1024
    """Longer prompts are dropped when the data is read."""
    max_response_tokens: Positive = 3072
    """A response that reaches this length is truncated."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; policy log-probs use the same."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus mass to sample from."""
    max_batch_size: Positive = 256
    """Sequences that the embedded engine decodes at once."""
    logprob_alarm: PositiveFloat = 1.0
    """Warn when the mean |train - rollout| log-prob of a step exceeds this (nats)."""

    @property
    def uses_servers(self) -> bool:
        """True if SGLang servers sample; false if the training processes do."""
        return self.engine == "sglang"

    @property
    def starts_servers(self) -> bool:
        """True if the run starts SGLang servers; false if it attaches to running ones or uses none."""
        return self.uses_servers and not self.sglang.urls

    @property
    def attached_urls(self) -> tuple[str, ...]:
        """URLs of the running servers that the run attaches to."""
        return self.sglang.urls if self.uses_servers else ()

    @property
    def replays_routing(self) -> bool:
        """True if training uses the experts that the servers chose for each token."""
        return self.uses_servers and self.sglang.routing_replay

    @property
    def reserved_positions(self) -> int:
        """Positions at the end of the model's context that no response may reach."""
        return SGLANG_RESERVED_POSITIONS if self.uses_servers else 0

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of the longest prompt and the longest response together."""
        return self.max_prompt_tokens + self.max_response_tokens
