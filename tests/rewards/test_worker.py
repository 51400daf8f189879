import io
import subprocess
import sys

from megatron_prime.rewards.worker import HEADER, encode_frame, read_frame
from tests.support import deadlines


def test_frames_are_encoded_and_decoded():
    messages = [{"a": "é\n\0"}, [], "x" * 70_000, None]
    stream = io.BytesIO(b"".join(encode_frame(message) for message in messages))
    assert [read_frame(stream) for _ in range(3)] == messages[:3]


def test_a_truncated_frame_is_the_end_of_the_stream():
    frame = encode_frame({"a": 1})
    for length in range(len(frame)):
        assert read_frame(io.BytesIO(frame[:length])) is None


def test_a_worker_answers_and_ends_when_its_input_closes():
    requests = [{"response_text": "1 2", "answer": "2"}, {"response_text": "", "answer": ""}]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from megatron_prime.rewards.worker import main; main()",
            "exact_match",
            "megatron_prime.rewards",
            "5",
            "{}",
        ],
        input=b"".join(encode_frame(request) for request in requests),
        capture_output=True,
        check=True,
        timeout=deadlines.seconds(60),
    )
    stream = io.BytesIO(done.stdout)
    assert "ready" in read_frame(stream)
    assert read_frame(stream) == {"reward": 1.0, "status": "ok", "detail": ""}
    error = read_frame(stream)
    assert error["reward"] is None
    assert error["status"] == "error"
    assert stream.read() == b""
    assert HEADER.size == 4
