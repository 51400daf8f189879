import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_prime.models.packed_sequences import pack_sequences

SEQUENCES = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9]), ([10, 11], [])]


def test_a_small_batch_is_packed_as_computed_by_hand():
    packed = pack_sequences(SEQUENCES)
    assert packed.token_ids_S.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert packed.labels_S.tolist() == [2, 3, 4, 5, 0, 7, 8, 9, 0, 11, 0]
    assert packed.position_ids_S.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1]
    assert packed.cu_seqlens.tolist() == [0, 5, 9, 11]
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.predict_positions_R.tolist() == [2, 3, 5, 6, 7]
    assert packed.rows_R.tolist() == [0, 0, 1, 1, 1]
    assert packed.cols_R.tolist() == [0, 1, 0, 1, 2]
    assert (packed.max_seqlen, packed.num_sequences, packed.num_padding) == (5, 3, 0)
    assert (packed.num_tokens, packed.num_response_tokens) == (11, 5)


@pytest.mark.parametrize(("pad_to", "num_padding"), [(1, 0), (4, 1), (8, 5), (16, 5), (11, 0)])
def test_padding_is_a_separate_sequence_without_predictions(pad_to, num_padding):
    plain, padded = pack_sequences(SEQUENCES), pack_sequences(SEQUENCES, pad_to=pad_to, pad_token_id=99)
    assert padded.num_tokens % pad_to == 0
    assert padded.num_padding == num_padding
    assert padded.token_ids_S.tolist() == plain.token_ids_S.tolist() + [99] * num_padding
    assert padded.cu_seqlens.tolist() == plain.cu_seqlens.tolist() + [11 + num_padding] * (num_padding > 0)
    assert padded.position_ids_S[11:].tolist() == list(range(num_padding))
    assert torch.equal(padded.predict_positions_R, plain.predict_positions_R)
    assert padded.num_sequences == 3


def test_the_longest_sequence_may_be_the_padding():
    assert pack_sequences([([1], [2])], pad_to=16).max_seqlen == 14


@given(
    sequences=st.lists(
        st.tuples(
            st.lists(st.integers(1, 50), min_size=1, max_size=6), st.lists(st.integers(1, 50), max_size=9)
        ),
        min_size=1,
        max_size=5,
    ),
    context=st.integers(1, 4),
    tensor=st.sampled_from([1, 2, 3]),
)
def test_sequences_padded_for_context_parallelism_keep_labels_and_predictions(sequences, context, tensor):
    plain = pack_sequences(sequences)
    pad_to = 2 * context * tensor
    padded = pack_sequences(sequences, pad_to, pad_token_id=99, pad_sequences_to=2 * context)
    assert padded.num_tokens % pad_to == 0
    assert padded.num_sequences == len(sequences)
    assert padded.num_padding == padded.num_tokens - plain.num_tokens
    assert torch.equal(padded.rows_R, plain.rows_R) and torch.equal(padded.cols_R, plain.cols_R)
    starts, plain_starts = padded.cu_seqlens.tolist(), plain.cu_seqlens.tolist()
    predicting = [[], []]
    for row, (prompt, response) in enumerate(sequences):
        length = len(prompt) + len(response)
        stop = starts[row] + length
        filling = starts[row + 1] - stop
        assert 0 <= filling < 2 * context and (length + filling) % (2 * context) == 0
        inside, before = slice(starts[row], stop), slice(plain_starts[row], plain_starts[row + 1])
        assert torch.equal(padded.token_ids_S[inside], plain.token_ids_S[before])
        assert torch.equal(padded.labels_S[inside], plain.labels_S[before])
        assert padded.token_ids_S[stop : stop + filling].tolist() == [99] * filling
        assert padded.labels_S[stop : stop + filling].tolist() == [0] * filling
        positions = padded.position_ids_S[starts[row] : stop + filling].tolist()
        assert positions == list(range(length + filling))
        for found, packed, first in zip(predicting, (padded, plain), (starts, plain_starts), strict=True):
            found += (packed.predict_positions_R[packed.rows_R == row] - first[row]).tolist()
    assert predicting[0] == predicting[1]
    num_at_end = padded.num_tokens - starts[len(sequences)]
    assert 0 <= num_at_end < pad_to
    assert starts[len(sequences) + 1 :] == [padded.num_tokens] * (num_at_end > 0)
    assert padded.token_ids_S[starts[len(sequences)] :].tolist() == [99] * num_at_end
    assert padded.labels_S[starts[len(sequences)] :].tolist() == [0] * num_at_end
    assert padded.max_seqlen == max(stop - start for start, stop in pairwise(starts))


def test_an_empty_microbatch_is_only_padding():
    packed = pack_sequences([], pad_to=4, pad_token_id=7)
    assert packed.token_ids_S.tolist() == [7, 7, 7, 7]
    assert packed.cu_seqlens.tolist() == [0, 4]
    assert packed.num_response_tokens == packed.num_sequences == 0
    assert packed.predict_positions_R.dtype == packed.rows_R.dtype == packed.cols_R.dtype == torch.int64
    assert packed.scatter(torch.zeros(0), 3).shape == (0, 3)


@pytest.mark.parametrize("seed", range(6))
def test_every_response_token_is_predicted_from_the_position_before_it(seed):
    rng = random.Random(seed)
    sequences = [
        (
            [rng.randrange(1, 50) for _ in range(rng.randint(1, 6))],
            [rng.randrange(1, 50) for _ in range(rng.randint(0, 9))],
        )
        for _ in range(rng.randint(1, 7))
    ]
    packed = pack_sequences(sequences, pad_to=rng.choice([1, 4, 16]))
    found = {}
    for position, row, col in zip(packed.predict_positions_R, packed.rows_R, packed.cols_R, strict=True):
        prompt, response = sequences[row]
        start = int(packed.cu_seqlens[row])
        assert int(position) - start == len(prompt) + int(col) - 1
        assert int(packed.labels_S[position]) == response[col] == int(packed.token_ids_S[position + 1])
        found[int(row), int(col)] = int(packed.labels_S[position])
    assert found == {
        (row, col): token for row, (_, response) in enumerate(sequences) for col, token in enumerate(response)
    }


def test_scatter_puts_values_at_row_and_column_and_passes_gradients():
    packed = pack_sequences(SEQUENCES)
    values_R = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], requires_grad=True)
    values_NT = packed.scatter(values_R, 4)
    assert values_NT.tolist() == [[1, 2, 0, 0], [3, 4, 5, 0], [0, 0, 0, 0]]
    (values_NT * torch.arange(12.0).view(3, 4)).sum().backward()
    assert values_R.grad.tolist() == [0, 1, 4, 5, 6]


def test_moving_to_a_device_keeps_every_field(monkeypatch):
    # Only a machine with an accelerator has pinned memory.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    packed = pack_sequences(SEQUENCES, pad_to=4)
    moved = packed.to("meta")
    assert moved.token_ids_S.device.type == moved.cols_R.device.type == "meta"
    assert moved.max_seqlen == packed.max_seqlen


def test_invalid_sequences_are_refused_with_a_reason():
    with pytest.raises(ValueError, match="sequence 1 has an empty prompt"):
        pack_sequences([([1], [2]), ([], [3])])
    for sizes in ({"pad_to": 0}, {"pad_to": 6, "pad_sequences_to": 4}, {"pad_sequences_to": 0}):
        with pytest.raises(ValueError, match="pad_to must be"):
            pack_sequences(SEQUENCES, **sizes)
