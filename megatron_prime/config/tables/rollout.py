"""The [rollout] and [rollout.sglang] tables: how responses are sampled, and the servers that sample them."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from megatron_prime.config.redaction import Address, redact
from megatron_prime.config.section import NonNegative, Positive, PositiveFloat, Section, UserPath

SGLANG_RESERVED_POSITIONS = 2
"""Positions at the end of the context that SGLang reserves; it silently truncates a response that reaches them."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class SGLangConfig(Section):
    """SGLang servers that sample the rollouts: started on the job's nodes, or already running and named by URL."""

    python: UserPath = Path(".venv-sglang/bin/python")
    """Python interpreter of the engine environment; `make sglang` builds the default one."""
    urls: tuple[Address, ...] = ()
    """URLs of running servers to attach to, such as http://node7:30000; then none are started. Default none."""
    api_key_file: UserPath | None = None
    """File with the API key of the servers in urls, or with one line for each of them; only you may be able to read it.
    Servers that the run starts have random keys in any case. Default none."""
    num_servers: Positive = 1
    """Number of servers to start per node."""
    nodes: Literal["first", "all"] = "first"
    """Nodes on which servers start: first is the node of rank 0; all is every node of the job."""
    tensor: Positive = 1
    """Tensor-parallel size of each server, attached ones included."""
    expert: Positive = 1
    """Expert-parallel size of each server; must divide its tensor-parallel size."""
    weight_transport: Literal["shards", "ipc", "disk"] | None = None
    """Path of new weights to the servers. shards sends slices of the training ranks' memory by gloo or NCCL, after the
    first sync only the elements that have changed; ipc passes whole slices through memory that is shared within a node,
    also on the same GPUs; disk writes an HF checkpoint. Default ipc for servers on GPUs of training ranks, which NCCL
    cannot reach, and shards for others."""
    quantization: Literal["none", "fp8"] = "none"
    """fp8 serves linear layers that the senders quantize in blocks of 128 x 128; needs GPUs. Default none."""
    weight_full_check_every: NonNegative = 0
    """Weight syncs between full comparisons of all parameters by SGLang's /weights_checker; 0 makes none. Every sync is
    verified by checksums in any case."""
    weight_bucket_mib: Positive = 256
    """Maximum size, in MiB, of the weights that a rank of a server receives at a time."""
    gpu_ids: tuple[NonNegative, ...] = ()
    """GPUs of a node's servers, num_servers * tensor of them; default 0, 1, 2, ..., shared with the trainer."""
    colocated: bool | None = None
    """true makes servers release their memory while the trainer trains. That is the default for servers that the run
    starts on GPUs of training ranks."""
    mem_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Fraction of a GPU's memory for the server's weights and KV cache."""
    max_total_tokens: Positive | None = None
    """Capacity of a server's KV cache in tokens. Default what mem_fraction leaves beside the weights; 32768 on CPUs."""
    concurrency: Positive = 256
    """Maximum number of responses in flight per server, those that wait for their environment included."""
    request_timeout_s: PositiveFloat = 1800.0
    """Deadline of one turn of a response in seconds, including its time in the server's queue."""
    control_timeout_s: PositiveFloat = 300.0
    """Deadline of one control call, such as an update of the weights, in seconds."""
    startup_timeout_s: PositiveFloat = 600.0
    """Deadline for a server to load the model and answer, in seconds."""
    max_restarts: NonNegative = 3
    """Number of consecutive restarts of a server, each within ten minutes of the last, before the run stops."""
    deterministic: bool = False
    """Sample with seeds, so that a resumed run repeats its samples; needs GPUs and is slower. Off by default."""
    routing_replay: bool = False
    """Train the policy with the experts that the servers chose for each token; for mixtures of experts only."""
    allow_mixed_versions: bool = False
    """Keep groups whose responses were sampled with different policy versions; by default they are dropped."""
    extra_args: tuple[str, ...] = ()
    """Additional arguments of `python -m sglang.launch_server`; they override those that the run sets."""

    def server_gpus(self, server: int) -> tuple[int, ...]:
        """Return the GPUs of one of a node's servers, counted over the node."""
        # Servers are numbered over all nodes, and every node uses the same GPUs.
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

    def sends_changes(self, *, is_colocated: bool) -> bool:
        """Return whether servers that hold the weights of the last sync are sent only what has changed since.

        Servers that give their memory up hold nothing, SGLang rearranges quantized layers after every update, and files
        and shared memory hold whole weights.
        """
        return self.weight_transport in (None, "shards") and self.quantization == "none" and not is_colocated

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
        # A checkpoint on disk holds the weights as they are, and no sender could quantize them on the way.
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
        for index, url in enumerate(self.urls):
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"urls[{index}] must begin with http:// or https://")
            if redact(url) != url:
                raise ValueError(
                    f"{redact(repr(url))} in urls must have neither credentials nor a query string: a server's key "
                    "belongs into the file that rollout.sglang.api_key_file names"
                )
        if len(set(self.urls)) != len(self.urls):
            raise ValueError("urls names a server twice")
        # Memory handles of another process are valid on the same node only.
        elsewhere = [url for url in self.urls if urlsplit(url).hostname not in _LOOPBACK]
        if self.weight_transport == "ipc" and elsewhere:
            raise ValueError(
                f"weight_transport = 'ipc' reaches servers on the trainer's own node alone, such as "
                f"http://127.0.0.1:30000, and not {elsewhere[0]}: use 'shards'"
            )
        return self


class RolloutConfig(Section):
    """Sampling of responses from the policy."""

    engine: Literal["local", "sglang"] = "local"
    """Rollout engine: local samples inside the training processes; sglang in servers beside them."""
    sglang: SGLangConfig = SGLangConfig()
    """Settings of the SGLang servers."""
    group_size: Positive = 4
    """Responses per prompt (K in the paper)."""
    max_prompt_tokens: Positive = 1024
    """Maximum length of a prompt; longer ones are dropped when the data is read."""
    max_response_tokens: Positive = 3072
    """Maximum length of a response, at which it is truncated; with an environment, of all turns and replies."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; the policy's log-probs are computed at the same temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability mass of nucleus sampling, of the command `rollout` alone; training needs 1, the whole distribution,
    because the probabilities that its loss compares are those of all tokens."""
    max_staleness: NonNegative = 0
    """Most steps between the weights that sample a token and those that train on it. 0 samples and trains in turn; 1
    samples the batch of the next step while the trainer learns from this one, by servers with GPUs of their own; with 2
    or more these servers sample all the time, and runs do not repeat."""
    partial: Literal["wait", "continue"] = "wait"
    """Responses in work when new weights come, with max_staleness of 2 or more: wait lets them end first, while no
    others begin; continue goes on with the new weights, so that a response is of several versions."""
    max_batch_size: Positive = 256
    """Maximum number of sequences that the local engine decodes at the same time."""
    max_in_flight: Positive | None = None
    """Maximum number of responses that are being sampled at a time, in whole groups. Default as many as the servers
    take (rollout.sglang.concurrency of each); with the local engine, as many as the batch is expected to need."""

    @model_validator(mode="after")
    def _check_continuous(self) -> Self:
        if self.max_staleness > 1 and not self.uses_servers:
            raise ValueError(
                f"max_staleness = {self.max_staleness} keeps sampling beside the training, but engine = 'local' "
                "samples in the training processes: set engine = 'sglang', or max_staleness to 0 or 1"
            )
        if self.partial == "continue" and self.max_staleness < 2:
            raise ValueError(
                f"partial = 'continue' needs max_staleness of 2 or more: with {self.max_staleness}, no response is in "
                "work when new weights come"
            )
        if self.partial == "continue" and self.sglang.routing_replay:
            raise ValueError(
                "partial = 'continue' with sglang.routing_replay: a response that continues is computed anew, so that "
                "the experts of its first tokens are no longer those that sampled them; set partial = 'wait', or "
                "routing_replay = false"
            )
        return self

    @property
    def mixes_versions(self) -> bool:
        """True if a group may be sampled by several policy versions."""
        return self.sglang.allow_mixed_versions or self.partial == "continue"

    @property
    def uses_servers(self) -> bool:
        """True if SGLang servers sample; false if the training processes do."""
        return self.engine == "sglang"

    @property
    def samples_ahead(self) -> bool:
        """True if a batch is sampled before the update of the step before it."""
        return self.max_staleness > 0

    def overlap_fault(self, is_colocated: bool) -> str | None:
        """Return why nothing can be sampled ahead on servers that share GPUs with the trainer, or keep off them."""
        if not self.samples_ahead or not is_colocated:
            return None
        return (
            f"rollout.max_staleness = {self.max_staleness} samples while the trainer trains, but the servers release "
            "their memory then, because they share GPUs with it (rollout.sglang.colocated): give them GPUs of their "
            "own by rollout.sglang.gpu_ids or urls, or set max_staleness = 0"
        )

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
