"""The embedded engine: a transformers model inside each training process, without servers.

Every rank holds a whole copy of the model and samples its share of the requests; the shares are then gathered.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from megatron_prime.engines.conversation import SampledTurn
from megatron_prime.engines.dialogue import Dialogue, DialogueSettings, close_all
from megatron_prime.engines.local.decoding import Request, decode_batch
from megatron_prime.engines.local.expert_views import checkpoint_views
from megatron_prime.engines.local.kept_cache import KeptCache
from megatron_prime.engines.requests import ModelLimits, StreamKey, check_request
from megatron_prime.hf.checkpoint import HFCheckpointReader
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.hf.shape import read_shape
from megatron_prime.observability.activity import ENGINE, worker
from megatron_prime.rollout.engine import WeightSyncError
from megatron_prime.rollout.episode import Environments
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_intake import WeightIntake
from megatron_prime.types import Prompt, Rollout, SamplingParams, WeightBlock


class LocalEngine:
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

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        group_size: int,
        stream_key: int,
        environments: Environments | None = None,
    ) -> list[Rollout]:
        """See `Engine.generate`."""
        model = self._open_model()
        self.weights.require_weights()
        check_request(prompts, params, group_size, stream_key, self._limits)
        settings = DialogueSettings(params, self._limits, environments)
        requests = self._requests(prompts, group_size, stream_key)
        # Every rank computes the whole order and takes its share of it, so that nothing has to be communicated before.
        order = _dealt_order(
            [len(prompt.token_ids) for prompt in prompts], self._ranks.world_size, group_size
        )
        share = [Dialogue(*requests[place], settings) for place in self._ranks.share(order)]
        try:
            self._sample(model, share, settings)
        finally:
            close_all(share)
        rollouts = self._ranks.gather_all([dialogue.rollout(self.policy_version) for dialogue in share])
        by_place = dict(zip(order, rollouts, strict=True))
        return [by_place[place] for place in range(len(requests))]

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

    def _requests(
        self, prompts: Sequence[Prompt], group_size: int, stream_key: int
    ) -> list[tuple[Prompt, int, StreamKey]]:
        """Return (prompt, sample index, key) of all ranks' responses, ordered by prompt and then by sample."""
        num_seen: Counter[int] = Counter()
        requests = []
        for prompt in prompts:
            first_draw = num_seen[prompt.index] * group_size
            num_seen[prompt.index] += 1
            for sample in range(group_size):
                # A repeated prompt continues to count: its responses must not repeat those of its first occurrence.
                key = StreamKey(self._seed, stream_key, prompt.index, first_draw + sample)
                requests.append((prompt, sample, key))
        return requests

    def _sample(
        self, model: PreTrainedModel, dialogues: Sequence[Dialogue], settings: DialogueSettings
    ) -> None:
        """Sample this rank's responses, at most max_batch_size at a time, those to prompts of similar length together.

        All of them take a turn together, and then wait for the slowest environment; others take the place of those that
        are over.
        """
        waiting = deque(sorted(dialogues, key=lambda dialogue: len(dialogue.conversation.input_ids)))
        live: list[Dialogue] = []
        kept = KeptCache() if settings.environments is not None else None
        self._worker.submit(len(waiting))
        try:
            with asyncio.Runner() as runner:
                while waiting or live:
                    joining = [waiting.popleft() for _ in range(self._max_batch_size - len(live)) if waiting]
                    self._worker.begin(len(joining))
                    live += joining
                    if settings.environments is not None:
                        runner.run(_together(dialogue.begin() for dialogue in joining))
                    takers = [dialogue for dialogue in live if not dialogue.is_over]
                    self._take_turn(model, takers, settings.params, kept)
                    if settings.environments is not None:
                        runner.run(_together(dialogue.reply() for dialogue in live))
                    self._worker.end(sum(dialogue.is_over for dialogue in live))
                    live = [dialogue for dialogue in live if not dialogue.is_over]
        finally:
            self._worker.end(len(live))
            self._worker.withdraw(len(waiting))

    def _take_turn(
        self,
        model: PreTrainedModel,
        dialogues: Sequence[Dialogue],
        params: SamplingParams,
        kept: KeptCache | None,
    ) -> None:
        """Sample the next turn of each dialogue."""
        conversations = [dialogue.conversation for dialogue in dialogues]
        requests = [
            Request(each.input_ids, dialogue.key, each.turn_budget, each.num_tokens)
            for dialogue, each in zip(dialogues, conversations, strict=True)
        ]
        if not requests:
            return
        for dialogue, turn in zip(dialogues, decode_batch(model, requests, params, kept), strict=True):
            spans = ((self.policy_version, 0, len(turn.token_ids)),)
            dialogue.add_turn(SampledTurn(turn.token_ids, turn.logprobs, turn.finish_reason, spans))


async def _together(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Await all of the work at the same time."""
    await asyncio.gather(*work)


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


def _dealt_order(prompt_lengths: Sequence[int], world_size: int, group_size: int) -> list[int]:
    """Return the indices of all requests in the order in which the ranks share them.

    Prompts are dealt by length like cards, so that every rank's contiguous share mixes long and short ones. Groups stay
    together, which lets them share their prefill.
    """
    by_length = sorted(range(len(prompt_lengths)), key=lambda place: prompt_lengths[place])
    dealt = [place for hand in range(world_size) for place in by_length[hand::world_size]]
    return [place * group_size + sample for place in dealt for sample in range(group_size)]
