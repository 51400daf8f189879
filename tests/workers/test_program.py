import io
import os
import signal
import subprocess
import sys

import pytest

from megatron_prime.workers.frames import DONE, TOKEN_BYTES, encode_frame, read_frame
from tests.support import deadlines


@pytest.fixture
def run():
    def run(timeout_s, *requests):
        """Run the toy program on requests, and return its replies and exit code."""
        tokens = [bytes([number]) * TOKEN_BYTES for number in range(len(requests) + 1)]
        frames = [encode_frame(each) + token for each, token in zip(requests, tokens[1:], strict=True)]
        done = subprocess.run(
            [sys.executable, "-c", "from tests.workers.toy_program import main; main()", timeout_s, "hi"],
            input=b"".join([tokens[0], *frames]),
            capture_output=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=deadlines.seconds(60),
        )
        stream, replies = io.BytesIO(done.stdout), []
        for token in tokens:
            if (head := stream.read(len(DONE) + TOKEN_BYTES)) == b"":
                break
            assert head == DONE + token
            replies.append(read_frame(stream))
        assert stream.read() == b""
        assert b"noise on stdout" in done.stderr
        return replies, done.returncode

    return run


def test_a_program_answers_each_request_with_its_token_until_its_input_ends(run):
    replies, code = run("5", ["echo", 1], ["echo", "é"])
    assert [reply[:2] for reply in replies[1:]] == [["hi", 1], ["hi", "é"]]
    assert (replies[0], code) == ({"ready": True}, 0)


def test_the_kernel_ends_a_program_that_exceeds_its_limit(run):
    replies, code = run("0.2", ["sleep", 60])
    assert (replies, code) == ([{"ready": True}], -signal.SIGALRM)
