"""The embedded engine: a transformers model inside each training process, without servers.

Every rank holds a whole copy of the model and samples its share of the requests; the shares are then gathered.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from megatron_prime.engines.dialogue import DialogueSettings
from megatron_prime.engines.local.expert_views import checkpoint_views
from megatron_prime.engines.local.group_stream import LocalGroupStream, Sampler
from megatron_prime.engines.requests import ModelLimits, check_sampling
from megatron_prime.hf.checkpoint import HFCheckpointReader
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.hf.shape import read_shape
from megatron_prime.observability.activity import ENGINE, worker
from megatron_prime.rollout.engine import CheckpointEngine, WeightSyncError
from megatron_prime.rollout.episode import Environments
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_intake import WeightIntake
from megatron_prime.types import SamplingParams, WeightBlock


class LocalEngine(CheckpointEngine):
    """The embedded implementation of `rollout.engine.Engine`.

    Memory on each rank: the model in `dtype`, a KV cache of at most max_batch_size sequences
    (2 * layers * kv_heads * head_dim * bytes per token), and a few [max_batch_size, vocab] tensors.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        max_batch_size: int,
        ranks: Ranks | None = None,
    ) -> None:
        """Build the model from model_path/config.json; its weights arrive by a weight sync.

        Raises:
            ValueError: max_batch_size or seed out of range, or no config.json.
        """
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size = {max_batch_size} must be at least 1")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed = {seed} must be in [0, 2**64)")
        self._seed = seed
        self._max_batch_size = max_batch_size
        self._ranks = ranks or Ranks()
        self._worker = worker("embedded engine", ENGINE)
        model = _build_model(model_path, device, dtype)
        self._model: PreTrainedModel | None = model
        self._limits = ModelLimits(
            vocab_size=model.config.get_text_config().vocab_size,
            max_positions=getattr(model.config, "max_position_embeddings", None),
        )
        self.weights = _intake_of(model)
        """Receives weight syncs into the model."""

    @property
    def policy_version(self) -> int:
        """See `Engine.policy_version`."""
        return self.weights.policy_version

    @contextlib.contextmanager
    def stream(
        self,
        params: SamplingParams,
        group_size: int,
        stream_key: int,
        environments: Environments | None = None,
    ) -> Iterator[LocalGroupStream]:
        """See `Engine.stream`."""
        model = self._open_model()
        self.weights.require_weights()
        check_sampling(params, group_size, stream_key)
        sampler = Sampler(
            model, self.policy_version, self._seed, self._max_batch_size, self._ranks, self._worker
        )
        settings = DialogueSettings(params, self._limits, environments)
        stream = LocalGroupStream(sampler, settings, group_size, stream_key)
        try:
            yield stream
        finally:
            stream.close()

    def while_training(self) -> contextlib.AbstractContextManager[None]:
        """See `Engine.while_training`. The weights are a copy that only a weight sync changes."""
        return contextlib.nullcontext()

    def release_memory(self) -> None:
        """See `Engine.release_memory`. Does nothing: the KV cache is freed with its batch, and the weights are kept."""

    def load_from_hf(self, model_path: Path, policy_version: int = 0) -> None:
        """See `CheckpointEngine.load_from_hf`. For evaluation, not for training."""
        self.weights.receive(policy_version, self._blocks_of(model_path))

    def close(self) -> None:
        """See `Engine.close`."""
        self._model = None
        self.weights.close()

    def _open_model(self) -> PreTrainedModel:
        if self._model is None:
            raise WeightSyncError("the engine is closed")
        return self._model

    def _blocks_of(self, folder: Path) -> Iterator[list[WeightBlock]]:
        """Yield the tensors of a checkpoint, one at a time, as training reads and checks them."""
        reader = HFCheckpointReader(folder)
        expected = hf_tensors(read_shape(folder))
        reader.check_against(expected)
        for name, dims in expected.items():
            if name not in self.weights.aliases:
                yield [WeightBlock(name, dim=0, start=0, tensor=reader.read_slice(name, 0, 0, dims[0]))]


def _build_model(model_path: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Build the model without initializing its weights.

    A sync overwrites them, and initializing a large model takes minutes.
    """
    if not (Path(model_path) / "config.json").is_file():
        raise ValueError(f"{model_path} has no config.json: model.path must be an HF checkpoint directory")
    config = AutoConfig.from_pretrained(model_path)
    with no_init_weights(), torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()  # This is part of the initialization, which was skipped.
    return model.eval().requires_grad_(False)


def _intake_of(model: PreTrainedModel) -> WeightIntake:
    """Return the intake of a model's distinct tensors; further names of a tied tensor are its aliases."""
    name_of_tensor: dict[int, str] = {}
    aliases: dict[str, str] = {}
    state = checkpoint_views(model.state_dict(keep_vars=True), model.config.model_type)
    for name, tensor in state.items():
        # keep_vars returned the parameters themselves: tied ones are one object under two names.
        first_name = name_of_tensor.setdefault(id(tensor), name)
        if first_name != name:
            aliases[name] = first_name
    return WeightIntake({name: state[name] for name in name_of_tensor.values()}, aliases)
