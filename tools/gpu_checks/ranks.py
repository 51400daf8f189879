"""Several GPUs of this machine: layouts compared to one GPU, collectives of objects, and a rank that does not arrive.

As a script it is one rank (RANK, WORLD_SIZE and the other variables of torch in the environment).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_prime.workers.ports import free_port
from tools.gpu_checks.lines import FAULTS, ROOT, Line, Setting, failed, info, judged, skipped

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2, sequence parallel": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline": 2}),
    "pp2, 2 virtual stages": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "cp2": (2, {"context": 2}),
    "dp2": (2, {}),
    "ep2": (2, {"expert": 2}),
    "tp2 pp2, 2 virtual stages": (
        4,
        {"tensor": 2, "sequence_parallel": True, "pipeline": 2, "virtual_pipeline": 2},
    ),
    "pp4": (4, {"pipeline": 4}),
    "tp2 ep2 dp2": (4, {"tensor": 2, "sequence_parallel": True, "expert": 2}),
    "tp2 pp2 cp2": (8, {"tensor": 2, "sequence_parallel": True, "pipeline": 2, "context": 2}),
}
"""Name -> (number of GPUs, keys of [parallel]); data parallelism takes the remaining GPUs."""
ALONE, EXPERTS_ALONE = "one", "one, with experts"
"""One rank, for the layouts without and with expert parallelism."""
BOUNDS = {"cuda": 0.02, "cpu": 1e-4}
"""Bound in nats on the mean difference of log-probs from one rank's: bf16 on a GPU, fp32 on a CPU."""
TIMEOUT_S = 10.0
"""Timeout of the collectives for the rank that does not arrive."""
START_S = 240.0
"""Upper bound on the time to start the ranks, beyond that timeout."""


def ranks(setting: Setting) -> Iterator[Line]:
    """Score and train in every layout that fits on this machine, and compare to one rank."""
    reports: dict[str, dict[str, Any]] = {}
    for number in sorted({1, *(number for number, _ in LAYOUTS.values() if number <= setting.num_gpus)}):
        ended = start_ranks(setting, number, "layouts", timeout_s=120.0 + 60.0 * number)
        for rank, (code, said) in enumerate(ended):
            if code != 0:
                last = said.strip().splitlines()[-1][:300] if said.strip() else "no output"
                why = "still running at its deadline" if code is None else f"exit code {code}"
                yield Line(f"rank {rank} of {number}", "fail", note=f"{why}: {last}")
        path = setting.folder / f"layouts of {number}.json"
        reports |= json.loads(path.read_text()) if path.is_file() else {}
    for name, (number, _) in LAYOUTS.items():
        if number > setting.num_gpus:
            yield skipped(name, f"not run: needs {number} GPUs")
        elif "fault" in (found := reports.get(name, {"fault": "the ranks ended before it"})):
            yield Line(name, "fail", note=found["fault"])
        elif any("fault" in reports.get(alone, {"fault": ""}) for alone in (ALONE, EXPERTS_ALONE)):
            yield Line(name, "fail", note="one rank failed, so there is nothing to compare to")
        else:
            yield from _layout_lines(name, number, reports, setting)


def _layout_lines(
    name: str, number: int, reports: dict[str, dict[str, Any]], setting: Setting
) -> Iterator[Line]:
    found, alone = reports[name], reports[EXPERTS_ALONE if _has_experts(name) else ALONE]
    pairs = list(zip(found["logprobs"], alone["logprobs"], strict=True))
    gap = sum(abs(left - right) for left, right in pairs) / len(pairs)
    bound = BOUNDS[setting.device]
    yield judged(f"{name}: log-probs, difference from one rank", gap, "nats", f"<= {bound}", gap <= bound)
    again = sum(abs(left - right) for left, right in zip(found["updated"], alone["updated"], strict=True))
    gap = again / len(pairs)
    what = f"{name}: log-probs after an update, difference from one rank"
    yield judged(what, gap, "nats", f"<= {bound}", gap <= bound)
    yield info(
        f"{name}: an update", found["seconds"], "s", f"{number} ranks; one rank: {alone['seconds']:.3g} s"
    )
    yield info(
        f"{name}: messages between stages", found["messages"], "", f"{found['shapes']} exchanges of shapes"
    )
    yield judged(
        f"{name}: objects and votes", float(found["objects"]), "", "1", found["objects"], found["host"]
    )


def _has_experts(name: str) -> bool:
    return name == EXPERTS_ALONE or (name in LAYOUTS and "expert" in LAYOUTS[name][1])


def watchdog(setting: Setting) -> Iterator[Line]:
    """Leave one rank out of a collective: the other must name it and end."""
    start = time.monotonic()
    (code, said), _ = start_ranks(setting, 2, "missing", timeout_s=TIMEOUT_S + START_S)
    seconds = time.monotonic() - start
    named = [line for line in said.splitlines() if "rank 1 did not arrive" in line]
    yield judged(
        "the rank is named", float(bool(named)), "", "1", bool(named), named[0][:300] if named else ""
    )
    yield judged("exit code of the rank that waited", code or 0, "", "69", code == 69)
    yield info(
        "until it ended, its start included", seconds, "s", f"collectives time out after {TIMEOUT_S:.0f} s"
    )


def start_ranks(setting: Setting, number: int, what: str, timeout_s: float) -> list[tuple[int | None, str]]:
    """Run ranks of this module; return the exit code and the output of each. When one ends, the others soon do."""
    shared = {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    logs = [setting.folder / f"{what} of {number}, rank {rank}.txt" for rank in range(number)]
    command = [sys.executable, "-W", "ignore", "-m", "tools.gpu_checks.ranks", what]
    command += [setting.device, str(int(setting.is_tiny)), str(setting.folder)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("wb") as file:
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                subprocess.Popen(command, env=os.environ | shared | own, cwd=ROOT, stdout=file, stderr=file)
            )
    deadline = time.monotonic() + timeout_s
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                deadline = min(deadline, time.monotonic() + 5.0)
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(code, log.read_text(errors="replace")) for code, log in zip(codes, logs, strict=True)]


def _rank_main(what: str, device: str, is_tiny: bool, folder: Path) -> None:
    rank, number = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # The ranks write their configurations apart from each other.
    setting = Setting("cuda" if device == "cuda" else "cpu", is_tiny, folder / f"{what} {number}-{rank}")
    setting.folder.mkdir(exist_ok=True)
    if what == "missing":
        _wait_for_a_missing_rank(setting)
        return
    # Imported here, because Megatron takes seconds and the other task does not need it.
    from megatron_prime.parallel.topology import leave_job

    report: dict[str, Any] = {}
    layouts = {name: keys for name, (size, keys) in LAYOUTS.items() if size == number}
    for name, keys in (layouts or {ALONE: {}, EXPERTS_ALONE: {}}).items():
        try:
            report[name] = _one_layout(setting, name, keys, folder)
        except FAULTS as error:
            report[name] = {"fault": failed(name, error).note}
        if rank == 0:
            # After each layout, because a later one may hang.
            (folder / f"layouts of {number}.json").write_text(json.dumps(report))
    leave_job()


def _one_layout(setting: Setting, name: str, keys: dict[str, Any], models: Path) -> dict[str, Any]:
    """Score rows of different lengths, update, and score again, with the models that are in a folder."""
    import torch
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    from megatron_prime.parallel.collectives import all_gather_lists, any_rank, broadcast_object
    from tools.gpu_checks.machine import synchronize
    from tools.gpu_checks.roles import plain_loss, random_sequences, roles, write_shape

    counts = {"messages": 0, "shapes": 0}
    send, exchange = P2PCommunicator._communicate, P2PCommunicator._communicate_shapes

    def counted_send(self: P2PCommunicator, **arguments: Any) -> Any:  # noqa: ANN401
        counts["messages"] += 1
        return send(self, **arguments)

    def counted_exchange(self: P2PCommunicator, *arguments: Any) -> Any:  # noqa: ANN401
        counts["shapes"] += 1
        return exchange(self, *arguments)

    P2PCommunicator._communicate, P2PCommunicator._communicate_shapes = counted_send, counted_exchange
    # The job of one rank comes first and writes both.
    shape = "experts" if _has_experts(name) else "small"
    model = write_shape(replace(setting, folder=models), shape, with_weights=True)
    overrides = [f"parallel.{key}={str(value).lower()}" for key, value in keys.items()]
    overrides += [f"platform.dtype={'bf16' if setting.is_cuda else 'fp32'}", "policy.lr=1e-4"]
    tokens = 24 if setting.is_tiny else 500
    # Two of the longest rows fit into a microbatch, so that there are several of different lengths.
    overrides += [
        f"trainer.max_tokens_per_microbatch={2 * (tokens + 8)}",
        f"rollout.max_response_tokens={tokens}",
    ]
    overrides += ["rollout.max_prompt_tokens=8"]
    with roles(setting, model, "prm.enabled=false", *overrides) as built:
        policy, topology = built.policy, built.topology
        rows = random_sequences(policy.built.shape.vocab_size, 16, 8, tokens)
        rows = [(prompt, response[: len(response) - row]) for row, (prompt, response) in enumerate(rows)]
        mask_BT = torch.tensor(
            [[float(place < len(r)) for place in range(len(rows[0][1]))] for _, r in rows]
        ).bool()
        logprobs = policy.score(rows).logprobs_BT.cpu()[mask_BT].tolist()
        policy.update(rows, range(len(rows)), plain_loss)
        synchronize(setting)
        start = time.perf_counter()
        policy.update(rows, range(len(rows)), plain_loss)
        synchronize(setting)
        seconds = time.perf_counter() - start
        updated = policy.score(rows).logprobs_BT.cpu()[mask_BT].tolist()
        gathered = all_gather_lists([topology.rank], topology)
        objects = gathered == [[rank] for rank in range(topology.world_size)]
        objects &= broadcast_object(topology.rank, topology) == 0 and any_rank(topology.rank == 0, topology)
        host = topology.host_group.name() if topology.host_group is not None else topology.platform.backend
    P2PCommunicator._communicate, P2PCommunicator._communicate_shapes = send, exchange
    return counts | {
        "logprobs": logprobs,
        "updated": updated,
        "seconds": seconds,
        "objects": bool(objects),
        "host": f"over {host}; the job's own group: {topology.platform.backend}",
    }


def _wait_for_a_missing_rank(setting: Setting) -> None:
    """Enter a collective on rank 0 alone; the value is then read, as training reads its losses."""
    import torch
    import torch.distributed as dist

    from megatron_prime.parallel.platform import select_platform
    from megatron_prime.parallel.watchdog import start_watchdog

    platform = select_platform(setting.device, timeout_s=TIMEOUT_S)
    platform.start_process_group()
    rank = dist.get_rank()
    start_watchdog(rank, dist.get_world_size(), TIMEOUT_S, setting.folder, platform.is_cuda)
    value = torch.ones(1, device=platform.device)
    dist.all_reduce(value)
    value.item()
    if rank == 1:
        time.sleep(10 * TIMEOUT_S)
    dist.all_reduce(value)
    value.item()


if __name__ == "__main__":
    _rank_main(sys.argv[1], sys.argv[2], bool(int(sys.argv[3])), Path(sys.argv[4]))
