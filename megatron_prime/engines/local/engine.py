"""The embedded engine: an HF model inside each training process, which needs no server.

Every rank holds a whole copy of the model and samples its share of the requests; the shares are then
gathered.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from megatron_prime.engines.local.decoding import Request, decode_batch
from megatron_prime.engines.local.expert_views import checkpoint_views
from megatron_prime.engines.local.sampling import StreamKey, check_sampling
from megatron_prime.rollout.engine import WeightSyncError
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_intake import WeightIntake
from megatron_prime.types import Prompt, Rollout, SamplingParams, WeightBlock, WeightBucket


class LocalEngine:
    """Embedded implementation of `megatron_prime.rollout.engine.Engine`.

    Memory on each rank: the model in `dtype`, plus a KV cache of at most max_batch_size sequences
    (2 * layers * kv_heads * head_dim * bytes a token), plus a few [max_batch_size, vocab] tensors.

    Dense models only: transformers stores mixture-of-experts weights fused, under names that HF checkpoints
    don't have.
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
        model = _build_model(model_path, device, dtype)
        self._model: PreTrainedModel | None = model
        self._max_positions: int | None = getattr(model.config, "max_position_embeddings", None)
        self._num_vocab: int = model.config.get_text_config().vocab_size
        self._intake = _intake_of(model)

    @property
    def policy_version(self) -> int:
        """See `Engine.policy_version`."""
        return self._intake.policy_version

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, group_size: int, stream_key: int
    ) -> list[Rollout]:
        """See `Engine.generate`. ValueError also when a sequence could exceed the model's positions."""
        model = self._open_model()
        self._intake.require_weights()
        check_sampling(params, group_size, stream_key)
        self._check_prompts(prompts, params)
        requests = self._requests(prompts, group_size, stream_key)
        order = _dealt_order(
            [len(prompt.token_ids) for prompt in prompts], self._ranks.world_size, group_size
        )
        sampled = self._sample(model, [requests[place] for place in self._ranks.share(order)], params)
        rollouts = self._ranks.gather_all(sampled)
        by_place = dict(zip(order, rollouts, strict=True))
        return [by_place[place] for place in range(len(requests))]

    def release_memory(self) -> None:
        """See `Engine.release_memory`. Nothing: a KV cache lives no longer than its batch, and the weights are kept."""

    def begin_weight_update(self, policy_version: int) -> None:
        """See `Engine.begin_weight_update`."""
        self._open_model()
        self._intake.begin(policy_version)

    def load_weights(self, bucket: WeightBucket) -> None:
        """See `Engine.load_weights`. Tied names (lm_head.weight beside tied embeddings) must not be sent."""
        self._open_model()
        self._intake.load(bucket)

    def end_weight_update(self) -> None:
        """See `Engine.end_weight_update`."""
        self._open_model()
        self._intake.end()

    def weight_checksums(self) -> dict[str, str]:
        """See `Engine.weight_checksums`."""
        self._open_model()
        return self._intake.checksums()

    def load_from_hf(self, model_path: Path, policy_version: int = 0) -> None:
        """Load a checkpoint's safetensors as a weight sync: for evaluation tools, not for training.

        Raises:
            ValueError: model_path holds no safetensors, or tensors that the model lacks.
            WeightSyncError: the checkpoint is incomplete.
        """
        files = sorted(Path(model_path).glob("*.safetensors"))
        if not files:
            raise ValueError(f"{model_path} holds no *.safetensors file")
        self.begin_weight_update(policy_version)
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                    if name not in self._intake.aliases:
                        block = WeightBlock(name, dim=0, start=0, tensor=tensors.get_tensor(name))
                        self.load_weights(WeightBucket((block,), policy_version))
        self.end_weight_update()

    def close(self) -> None:
        """See `Engine.close`."""
        self._model = None
        self._intake = WeightIntake({})

    def _open_model(self) -> PreTrainedModel:
        if self._model is None:
            raise WeightSyncError("the engine is closed")
        return self._model

    def _check_prompts(self, prompts: Sequence[Prompt], params: SamplingParams) -> None:
        for prompt in prompts:
            if not prompt.token_ids:
                raise ValueError(f"prompt {prompt.index} has no tokens")
            if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < self._num_vocab:
                raise ValueError(
                    f"prompt {prompt.index} has token ids outside the model's vocabulary of {self._num_vocab}: "
                    "are tokenizer and model from one checkpoint?"
                )
            longest = len(prompt.token_ids) + params.max_response_tokens
            if self._max_positions is not None and longest > self._max_positions:
                raise ValueError(
                    f"prompt {prompt.index} has {len(prompt.token_ids)} tokens; with max_response_tokens = "
                    f"{params.max_response_tokens} that exceeds the model's max_position_embeddings = "
                    f"{self._max_positions}: lower rollout.max_response_tokens or max_prompt_tokens"
                )

    def _requests(self, prompts: Sequence[Prompt], group_size: int, stream_key: int) -> list[Request]:
        """All ranks' requests, by prompt and then sample."""
        num_seen: Counter[int] = Counter()
        requests = []
        for prompt in prompts:
            first_draw = num_seen[prompt.index] * group_size
            num_seen[prompt.index] += 1
            for sample in range(group_size):
                key = StreamKey(self._seed, stream_key, prompt.index, first_draw + sample)
                requests.append(Request(prompt, sample, key))
        return requests

    def _sample(
        self, model: PreTrainedModel, requests: list[Request], params: SamplingParams
    ) -> list[Rollout]:
        """Sample this rank's requests, in batches of prompts of similar length; in the order given."""
        order = sorted(range(len(requests)), key=lambda place: len(requests[place].prompt.token_ids))
        rollouts: dict[int, Rollout] = {}
        for start in range(0, len(order), self._max_batch_size):
            places = order[start : start + self._max_batch_size]
            responses = decode_batch(model, [requests[place] for place in places], params)
            for place, response in zip(places, responses, strict=True):
                rollouts[place] = Rollout(
                    prompt=requests[place].prompt,
                    sample_index=requests[place].sample_index,
                    response_ids=tuple(response.token_ids),
                    rollout_logprobs=tuple(response.logprobs),
                    finish_reason=response.finish_reason,
                    policy_version=self.policy_version,
                )
        return [rollouts[place] for place in range(len(requests))]


def _build_model(model_path: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture alone: initialising weights that a sync overwrites costs minutes on a large model."""
    if not (Path(model_path) / "config.json").is_file():
        raise ValueError(f"{model_path} has no config.json: model.path must be an HF checkpoint directory")
    config = AutoConfig.from_pretrained(model_path)
    with no_init_weights(), torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()  # part of the initialisation that was left out
    return model.eval().requires_grad_(False)


def _intake_of(model: PreTrainedModel) -> WeightIntake:
    """One entry for each distinct tensor of the state dict; further names of a tied tensor are aliases."""
    name_of_tensor: dict[int, str] = {}
    aliases: dict[str, str] = {}
    state = checkpoint_views(model.state_dict(keep_vars=True), model.config.model_type)
    for name, tensor in state.items():
        first_name = name_of_tensor.setdefault(id(tensor), name)
        if first_name != name:
            aliases[name] = first_name
    return WeightIntake({name: state[name] for name in name_of_tensor.values()}, aliases)


def _dealt_order(prompt_lengths: Sequence[int], world_size: int, group_size: int) -> list[int]:
    """Places of all requests: contiguous shares mix long and short prompts and keep groups together."""
    by_length = sorted(range(len(prompt_lengths)), key=lambda place: prompt_lengths[place])
    dealt = [place for hand in range(world_size) for place in by_length[hand::world_size]]
    return [place * group_size + sample for place in dealt for sample in range(group_size)]
