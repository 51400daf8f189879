"""A watchdog that terminates a job that hangs, and names the ranks that did not arrive.

Every few seconds each rank writes its current activity (observability/heartbeat.py) to the job's store. A rank that
waits for others beyond the deadline reads the reports of all ranks, determines which are missing, prints a table and
exits; the launcher (torchrun or Slurm) then terminates the rest. The deadline is a little shorter than the timeout of
the collectives, whose error does not name the missing ranks.
"""

import atexit
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from megatron_prime.observability import heartbeat
from megatron_prime.observability.durable import make_private, replace_file
from megatron_prime.parallel.peer_loss import EXIT_CODE

DEADLINE = 0.8
"""Fraction of the collectives' timeout after which a waiting rank counts as stuck."""
MAX_INTERVAL_S = 5.0
"""Maximum seconds between two reports of a rank."""


@dataclass(frozen=True)
class Report:
    """The activity that one rank reports."""

    rank: int
    step: int
    phase: str
    event: str
    count: int
    since_s: float
    """Seconds since the last heartbeat of the rank."""
    is_waiting: bool
    doing: str
    machine: str
    tick: int
    """Number of reports so far; it increases as long as the process and its interpreter run."""
    uses_gpu: bool = False
    """True if the rank may wait for its GPU: its thread then shows neither in which collective, nor how far it is."""


@dataclass(frozen=True)
class Diagnosis:
    """The ranks that did not arrive, and the reports of all ranks."""

    missing: dict[int, str]
    """Rank -> reason why it counts as missing; empty when the reports of all ranks look alike."""
    reports: list[Report]
    silent_s: dict[int, float]
    """Rank -> seconds since its last report, for ranks that have stopped reporting."""
    hints: dict[int, str] = field(default_factory=dict)
    """Rank -> what is special about it, although nothing shows that it keeps the others waiting."""

    def lines(self) -> list[str]:
        """Return the report as lines of text: a headline, the reasons and a table of all ranks."""
        names = ", ".join(str(rank) for rank in self.missing)
        who = (
            f"rank{'s' if len(self.missing) > 1 else ''} {names} did not arrive"
            if self.missing
            else "no rank is known to be missing, since each waits for its GPU or for other ranks: the network, a GPU, "
            "or the backend of the collectives"
            if any(report.uses_gpu for report in self.reports)
            else "every rank waits in the same place: the network, or the backend of the collectives"
        )
        rows = [["rank", "step", "phase", "last event", "since", "doing"]]
        for report in self.reports:
            silent = self.silent_s.get(report.rank)
            doing = (
                f"silent for {silent:.0f} s"
                if silent is not None
                else (f"waits in {report.doing}" if report.is_waiting else f"is in {report.doing}")
            )
            rows.append(
                [
                    str(report.rank),
                    str(report.step),
                    report.phase,
                    report.event,
                    f"{report.since_s:.0f} s",
                    doing,
                ]
            )
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        table = [
            "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]])
            for row in rows
        ]
        reasons = self.missing | self.hints
        return [f"stuck: {who}", *(f"  rank {rank} {why}" for rank, why in reasons.items()), *table]


def diagnose(reports: list[Report], silent_s: Mapping[int, float]) -> Diagnosis:
    """Determine from the reports of all ranks of a stuck job which ranks keep the others waiting.

    These are the ranks that stopped reporting (stopped, swapped out, gone) and those that are not in a collective. If
    there are none, they are the ranks with fewer heartbeats than others, or else the smallest group of ranks that waits
    in a different collective.

    Ranks with GPUs queue their work and wait for it anywhere. The last two signs prove nothing there: fewer heartbeats
    are a hint, and nobody counts as missing.
    """
    silent = dict.fromkeys(
        sorted(silent_s),
        "does not answer: it is stopped, its machine is gone, or it is stuck in a call that holds the interpreter",
    )
    elsewhere = {
        report.rank: f"is not in a collective but in {report.doing}, phase {report.phase}, step {report.step}, "
        f"last event: {report.event}"
        for report in reports
        if not report.is_waiting and report.rank not in silent
    }
    missing = silent | elsewhere
    if not missing and any(report.uses_gpu for report in reports):
        return Diagnosis({}, reports, dict(silent_s), _behind(reports))
    if not missing:
        missing = _behind(reports) or _apart(reports)
    return Diagnosis(missing, reports, dict(silent_s))


def _behind(reports: list[Report]) -> dict[int, str]:
    counts = [report.count for report in reports]
    return {
        report.rank: f"is behind: phase {report.phase}, step {report.step}, last event: {report.event}"
        for report in reports
        if report.count == min(counts) < max(counts)
    }


def _apart(reports: list[Report]) -> dict[int, str]:
    by_activity: dict[str, list[Report]] = {}
    for report in reports:
        by_activity.setdefault(report.doing, []).append(report)
    fewest = min(by_activity.values(), key=len)
    if len(by_activity) == 1:
        return {}
    return {report.rank: f"waits elsewhere than the others: {report.doing}" for report in fewest}


class Watchdog:
    """A watchdog for the thread that creates it; it runs until it is closed.

    One thread checks the deadline and another talks to the store, because a store that does not answer blocks its
    caller: the deadline must hold even then.

    Args:
        rank: Rank of this process.
        world_size: Number of processes of the job, at least 2.
        timeout_s: Timeout of the collectives.
        reports: Folder for stuck_*.json, created when needed.
        is_cuda: Whether the ranks use GPUs, so that waiting for one counts as waiting for other ranks.
        end: Function that ends the process, called after the report is written.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        timeout_s: float,
        reports: Path,
        is_cuda: bool = False,
        end: Callable[[], None] = lambda: os._exit(EXIT_CODE),
    ) -> None:
        self._rank, self._world_size = rank, world_size
        self._deadline_s = DEADLINE * timeout_s
        self._interval_s = min(MAX_INTERVAL_S, self._deadline_s / 10)
        self._reports = reports
        self._is_cuda = is_cuda
        self._end = end
        self._watched = threading.get_ident()
        self._machine = f"{socket.gethostname()}, process {os.getpid()}"
        self._ticks = 0
        self._waiting_since: float | None = None
        self._last_beat_at = 0.0
        self._place, self._in_place_since = (0, 0), time.monotonic()
        self._heard: dict[int, tuple[int, float]] = {}
        self._table: tuple[float, list[Report]] | None = None
        self._closing = threading.Event()
        self._store = _own_connection(self._interval_s)
        self._threads = [
            threading.Thread(target=target, name=f"watchdog {name}", daemon=True)
            for name, target in (("watch", self._watch), ("talk", self._talk))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2 * self._interval_s)

    def _key(self, rank: int) -> str:
        # torchrun keeps its store over restarts, so reports of an earlier attempt need other keys.
        return f"megatron_prime/heartbeat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"

    def _look(self) -> tuple[bool, str]:
        """Return whether the watched thread waits for other ranks, and where it is."""
        activity, now = heartbeat.thread_activity(self._watched, self._is_cuda), time.monotonic()
        if activity.place != self._place:
            self._place, self._in_place_since = activity.place, now
        # A thread that works on would have moved by now.
        stays = now - self._in_place_since > self._interval_s
        return activity.is_waiting or (activity.may_wait and stays), activity.text

    def _stuck_s(self) -> float:
        """Return how many seconds the watched thread has waited for other ranks without a heartbeat."""
        beats, now = heartbeat.current(), time.monotonic()
        is_waiting, _ = self._look()
        if not is_waiting or beats.at != self._last_beat_at:
            self._waiting_since, self._last_beat_at = now, beats.at
        assert self._waiting_since is not None
        return now - max(self._waiting_since, beats.at)

    def _watch(self) -> None:
        while not self._closing.wait(self._interval_s):
            stuck_s = self._stuck_s()
            if stuck_s > self._deadline_s:
                self._report()
                self._closing.set()
                self._end()

    def _talk(self) -> None:
        """Write this rank's report to the store; while this rank is stuck, read all reports as well."""
        while not self._closing.is_set():
            try:
                self._store.set(self._key(self._rank), json.dumps(asdict(self._own_report())))
                # Reading starts early: a rank counts as silent only if its report did not change between two reads.
                if self._stuck_s() > self._deadline_s / 3:
                    self._read_reports()
            except (
                dist.DistError,
                RuntimeError,
            ):  # The store is gone, and with it the process that holds it.
                self._table = None
            self._closing.wait(self._interval_s)

    def _read_reports(self) -> None:
        texts = self._store.multi_get([self._key(rank) for rank in range(self._world_size)])
        reports, now = [Report(**json.loads(text)) for text in texts], time.monotonic()
        # Clocks of different machines are not comparable, so silence is measured on this one, from the last new tick.
        for report in reports:
            if report.rank not in self._heard or self._heard[report.rank][0] != report.tick:
                self._heard[report.rank] = report.tick, now
        self._table = now, reports

    def _own_report(self) -> Report:
        beats, (is_waiting, doing) = heartbeat.current(), self._look()
        self._ticks += 1
        since_s = time.monotonic() - beats.at
        return Report(
            rank=self._rank,
            step=beats.step,
            phase=beats.phase,
            event=beats.event,
            count=beats.count,
            since_s=since_s,
            is_waiting=is_waiting,
            doing=doing,
            machine=self._machine,
            tick=self._ticks,
            uses_gpu=self._is_cuda,
        )

    def _report(self) -> None:
        """Print the missing ranks: on the first waiting rank only, or on every rank if the store is unreachable."""
        now = time.monotonic()
        if self._table is None or now - self._table[0] > 4 * self._interval_s:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            alone = Diagnosis({}, [self._own_report()], {}).lines()[1:]
            self._print(
                [
                    f"stuck: the job's store at {where} does not answer: rank 0, which holds it unless torchrun "
                    "does, is stopped, or its machine is gone",
                    *alone,
                ]
            )
            return
        _, reports = self._table
        silent_s = {
            rank: now - at for rank, (_, at) in self._heard.items() if now - at > 4 * self._interval_s
        }
        waiting = [r.rank for r in reports if r.is_waiting and r.rank not in silent_s]
        if waiting and self._rank != waiting[0]:
            time.sleep(
                1.0
            )  # The launcher ends all ranks once this one exits, so the first one needs time to print.
            return
        diagnosis = diagnose(reports, silent_s)
        self._print(diagnosis.lines())
        step = heartbeat.current().step
        content = json.dumps({"text": diagnosis.lines(), **asdict(diagnosis)}, indent=1)
        try:
            make_private(self._reports)
            replace_file(self._reports / f"stuck_step_{step:08d}.json", content + "\n")
        except OSError as error:
            self._print([f"the report could not be written: {error}"])

    def _print(self, lines: list[str]) -> None:
        sys.stderr.write("".join(f"megatron-prime, rank {self._rank}: {line}\n" for line in lines))
        sys.stderr.flush()


_current: Watchdog | None = None


def start_watchdog(
    rank: int, world_size: int, timeout_s: float, reports: Path, is_cuda: bool = False
) -> None:
    """Watch this thread until the process ends or the next call; do nothing in a job of one process."""
    global _current
    stop_watchdog()
    if world_size > 1:
        _current = Watchdog(rank, world_size, timeout_s, reports, is_cuda)


def stop_watchdog() -> None:
    """Stop the watchdog if one is running."""
    global _current
    if _current is not None:
        _current.close()
        _current = None


# A thread that is inside the store's C++ code while the interpreter shuts down would crash the process.
atexit.register(stop_watchdog)


def _own_connection(timeout_s: float) -> dist.TCPStore:
    """Return a separate connection to the store, so that a blocking call does not block the process groups."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=max(timeout_s, 1.0)),
    )
