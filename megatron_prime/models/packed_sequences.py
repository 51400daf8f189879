"""A microbatch in the packed (thd) layout: sequences end to end, without padding between them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from megatron_prime.parallel.platform import move_together

IGNORED_LABEL = 0
"""Label of positions that predict nothing; a valid token id, because losses gather by `predict_positions_R`."""


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """Tensors of one microbatch. S packed tokens, R response tokens, N sequences.

    Response token j of sequence i is scored by the logits at the position before it: for every r in R,
    `labels_S[predict_positions_R[r]]` is the token at column `cols_R[r]` of the response of `rows_R[r]`.
    """

    token_ids_S: torch.Tensor
    """int64 [S]: token ids."""
    labels_S: torch.Tensor
    """int64 [S]: the next token of the same sequence; 0 at the last token of each sequence and on padding."""
    position_ids_S: torch.Tensor
    """int64 [S]: positions, which restart at 0 with every sequence."""
    cu_seqlens: torch.Tensor
    """int32 [N + 1] (N + 2 with padding): start of each sequence, then S. Padding counts as one more sequence."""
    predict_positions_R: torch.Tensor
    """int64 [R]: position in S of the token before each response token."""
    rows_R: torch.Tensor
    """int64 [R]: sequence of each response token in the microbatch, 0 .. N - 1, nondecreasing."""
    cols_R: torch.Tensor
    """int64 [R]: index of each response token within its response, from 0."""
    max_seqlen: int
    """Number of tokens of the longest sequence, padding included."""
    num_sequences: int
    """N, the number of sequences without padding."""
    num_padding: int
    """Number of padding tokens, behind each sequence and at the end."""

    @property
    def num_tokens(self) -> int:
        """S, the number of packed tokens."""
        return self.token_ids_S.numel()

    @property
    def num_response_tokens(self) -> int:
        """R, the number of response tokens."""
        return self.predict_positions_R.numel()

    def to(self, device: torch.device | str) -> "PackedSequences":
        """Return the same microbatch with its tensors on `device`; on a GPU the host does not wait for the copy."""
        tensors = {name: value for name, value in _fields(self).items() if isinstance(value, torch.Tensor)}
        moved = zip(tensors, move_together(list(tensors.values()), device), strict=True)
        return replace(self, **dict(moved))

    def scatter(self, values_R: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Return response-token values as [N, num_columns], zero elsewhere; differentiable."""
        out_NT = values_R.new_zeros(self.num_sequences, num_columns)
        return out_NT.index_put((self.rows_R, self.cols_R), values_R)


def _fields(packed: PackedSequences) -> dict[str, Any]:
    return {field.name: getattr(packed, field.name) for field in fields(packed)}


def pack_sequences(
    prompt_and_response_ids: Sequence[tuple[Sequence[int], Sequence[int]]],
    pad_to: int = 1,
    pad_token_id: int = 0,
    pad_sequences_to: int = 1,
) -> PackedSequences:
    """Concatenate sequences into one microbatch.

    Args:
        prompt_and_response_ids: token ids of each prompt and its response; a prompt is never empty (its last token
            predicts the first response token), a response may be.
        pad_to: S is a multiple of this. Sequence parallelism needs the tensor-parallel size, FP8 16. Padding forms
            one more sequence, so that no real token attends to it, and no sequence at all gives one of `pad_to`
            padding tokens: what an empty microbatch runs.
        pad_token_id: token of the padding.
        pad_sequences_to: every sequence is padded behind its response to a multiple of this, which must divide
            pad_to. Context parallelism needs twice its size. Causal attention keeps such padding from being seen.

    Raises:
        ValueError: an empty prompt, or pad_to below 1 or no multiple of pad_sequences_to.
    """
    if pad_to < 1 or pad_sequences_to < 1 or pad_to % pad_sequences_to:
        raise ValueError(
            f"pad_to must be a positive multiple of pad_sequences_to, got {pad_to} and {pad_sequences_to}"
        )
    prompts_N, responses_N = (
        np.array([len(sequence[part]) for sequence in prompt_and_response_ids], dtype=np.int64)
        for part in (0, 1)
    )
    if not prompts_N.all():
        row = int(prompts_N.argmin())
        raise ValueError(f"sequence {row} has an empty prompt: nothing predicts its first response token")
    lengths_N = prompts_N + responses_N
    filled_N = lengths_N + -lengths_N % pad_sequences_to
    num_filled = int(filled_N.sum())
    num_at_end = -num_filled % pad_to if num_filled else pad_to
    bounds = [0, *filled_N.cumsum().tolist(), *[num_filled + num_at_end] * (num_at_end > 0)]
    # Every part is copied to its place, which takes a fraction of the time of looking up numbers of each token.
    numbers_S = np.arange(bounds[-1])
    token_ids_S = np.full(bounds[-1], pad_token_id, dtype=np.int64)
    labels_S = np.full(bounds[-1], IGNORED_LABEL, dtype=np.int64)
    position_ids_S = np.empty(bounds[-1], dtype=np.int64)
    position_ids_S[num_filled:] = numbers_S[:num_at_end]
    predict_R, rows_R, cols_R = np.empty((3, int(responses_N.sum())), dtype=np.int64)
    first = 0
    for row, (prompt_ids, response_ids) in enumerate(prompt_and_response_ids):
        start, last = bounds[row], first + len(response_ids)
        middle = start + len(prompt_ids)
        end = middle + len(response_ids)
        token_ids_S[start:middle] = prompt_ids
        token_ids_S[middle:end] = response_ids
        labels_S[start : end - 1] = token_ids_S[start + 1 : end]
        position_ids_S[start : bounds[row + 1]] = numbers_S[: bounds[row + 1] - start]
        predict_R[first:last] = numbers_S[middle - 1 : end - 1]
        rows_R[first:last] = row
        cols_R[first:last] = numbers_S[: len(response_ids)]
        first = last
    return PackedSequences(
        token_ids_S=torch.from_numpy(token_ids_S),
        labels_S=torch.from_numpy(labels_S),
        position_ids_S=torch.from_numpy(position_ids_S),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        predict_positions_R=torch.from_numpy(predict_R),
        rows_R=torch.from_numpy(rows_R),
        cols_R=torch.from_numpy(cols_R),
        max_seqlen=int(np.diff(bounds).max()),
        num_sequences=len(prompt_and_response_ids),
        num_padding=bounds[-1] - int(lengths_N.sum()),
    )
