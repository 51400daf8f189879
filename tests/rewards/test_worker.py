import io
import subprocess
import sys

from megatron_prime.workers.frames import DONE, TOKEN_BYTES, encode_frame, read_frame
from tests.support import deadlines


def test_a_worker_answers_and_ends_when_its_input_closes():
    requests = [{"response_text": "1 2", "answer": "2"}, {"response_text": "", "answer": ""}]
    tokens = [bytes([number]) * TOKEN_BYTES for number in range(3)]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from megatron_prime.rewards.worker import main; main()",
            "5",
            "exact_match",
            "megatron_prime.rewards",
            "{}",
        ],
        input=tokens[0]
        + b"".join(encode_frame(each) + token for each, token in zip(requests, tokens[1:], strict=True)),
        capture_output=True,
        check=True,
        timeout=deadlines.seconds(60),
    )
    stream = io.BytesIO(done.stdout)
    replies = []
    for token in tokens:
        assert stream.read(len(DONE) + TOKEN_BYTES) == DONE + token
        replies.append(read_frame(stream))
    reason = "it ends with '2', the answer is '2'"
    assert replies[:2] == [{"ready": True}, {"reward": 1.0, "status": "ok", "detail": reason}]
    error = replies[2]
    assert error["reward"] is None
    assert error["status"] == "error"
    assert stream.read() == b""
