import os
import subprocess
import sys

import pytest

from benchmarks.delta_sync.slow_network import limited

SEND = """
import socket, threading, time
server = socket.create_server(("127.0.0.1", 0))
sender = socket.create_connection(server.getsockname())
receiver, _ = server.accept()
threading.Thread(target=lambda: (sender.sendall(bytes(4_000_000)), sender.close())).start()
start, received = time.perf_counter(), 0
while part := receiver.recv(1 << 20):
    received += len(part)
assert received == 4_000_000
print(time.perf_counter() - start)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_the_rate_is_limited_inside_alone():
    command = [sys.executable, "-c", SEND]
    done = subprocess.run(limited(command, 200), capture_output=True, text=True, timeout=60)
    if done.returncode and "Specified qdisc kind is unknown" in done.stderr:
        pytest.skip("this kernel has no token bucket filter")
    assert done.returncode == 0, done.stderr
    # 4 MB less the burst at 25 MB/s.
    assert float(done.stdout) > 0.12
    shown = subprocess.run(["tc", "qdisc", "show", "dev", "lo"], capture_output=True, text=True, check=True)
    assert "tbf" not in shown.stdout
