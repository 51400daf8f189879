import io

from megatron_prime.workers.frames import HEADER, encode_frame, read_frame


def test_frames_are_encoded_and_decoded():
    messages = [{"a": "é\n\0"}, [], "x" * 70_000, None]
    stream = io.BytesIO(b"".join(encode_frame(message) for message in messages))
    assert [read_frame(stream) for _ in range(3)] == messages[:3]


def test_a_truncated_frame_is_the_end_of_the_stream():
    frame = encode_frame({"a": 1})
    for length in range(len(frame)):
        assert read_frame(io.BytesIO(frame[:length])) is None
    assert HEADER.size == 4
