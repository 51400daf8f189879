"""Another process can read the memory, and errors are raised when it is not available."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_prime.engines.sglang.loader import staging
from megatron_prime.engines.sglang.weights.shared_buffer import SharedBuffer

CPU = torch.device("cpu")
ON_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"))
READ = """
import json, sys
from staging import map_staging
memory = map_staging(json.loads(sys.argv[1]))
print(memory[:4].tolist(), memory.numel())
memory[1] = 77
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
def test_another_process_reads_and_writes_it_with_one_file_of_the_package(device):
    buffer = SharedBuffer(1 << 16, torch.device(device))
    buffer.memory[:4] = torch.tensor([1, 2, 3, 250], dtype=torch.uint8)
    folder = str(Path(staging.__file__).parent)
    found = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(buffer.handle)],
        env=os.environ | {"PYTHONPATH": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split("\n")[0] == "[1, 2, 3, 250] 65536"
    assert buffer.memory[1] == 77
    buffer.close()
    buffer.close()
    assert buffer.memory.numel() == 0


def test_a_new_buffer_is_not_confused_with_one_that_is_still_mapped():
    first = SharedBuffer(64, CPU)
    first.memory.fill_(1)
    old = staging.map_staging(first.handle)
    first.close()
    second = SharedBuffer(64, CPU)
    second.memory.fill_(2)
    assert second.handle["path"] == first.handle["path"], "the descriptor's number comes again"
    assert staging.map_staging(second.handle)[0] == 2
    assert staging.map_staging(second.handle).data_ptr() != old.data_ptr()
    assert old[0] == 1, "a mapping outlives the buffer"


def test_too_little_memory_is_an_error():
    with pytest.raises(
        ValueError, match=r"needs 1152921504606846976 bytes of shared memory, \d+ are free: lower"
    ):
        SharedBuffer(1 << 60, CPU)


def test_a_buffer_of_a_process_that_is_gone_is_an_error():
    made = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    handle = {"kind": "file", "path": f"/proc/{int(made.stdout)}/fd/5", "num_bytes": 8, "name": "x"}
    with pytest.raises(RuntimeError, match="No such file"):
        staging.map_staging(handle)
