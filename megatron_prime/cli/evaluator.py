"""Held-out accuracy, for training and for the eval command alike."""

from megatron_prime.cli.assemble import RolloutParts
from megatron_prime.config.schema import PrimeConfig
from megatron_prime.data.prompts import PromptDataset
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.rollout.evaluation import EvaluationResult, evaluate, evaluation_sampling
from megatron_prime.rollout.stream_keys import evaluation_stream_key


class Evaluator:
    """Held-out accuracy of whatever weights the engine holds."""

    def __init__(self, config: PrimeConfig, rollout: RolloutParts) -> None:
        tokenizer = load_tokenizer(config.model.path)
        dataset = PromptDataset.read(
            config.data.evaluation, config.data, tokenizer, config.rollout.max_prompt_tokens
        )
        self._prompts = dataset.prompts[: config.evaluation.max_prompts]
        self._samples_per_prompt = config.evaluation.samples_per_prompt
        self._rollout = rollout
        self._sampling = evaluation_sampling(
            config.evaluation, config.rollout.max_response_tokens, rollout.sampling.stop_token_ids
        )

    def __call__(self, step_index: int) -> EvaluationResult:
        """Sample and verify after so many steps. Collective over all ranks."""
        return evaluate(
            self._rollout.engine,
            self._prompts,
            self._rollout.verifier,
            self._sampling,
            samples_per_prompt=self._samples_per_prompt,
            stream_key=evaluation_stream_key(step_index),
        )
