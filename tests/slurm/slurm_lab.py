"""A real Slurm cluster of two nodes on one machine; each node has its own network namespace, name and address.

Needs root, slurmctld, slurmd and munged (Debian: slurmctld slurmd slurm-client munge). All its files are in
its folder. Outside it are only two network namespaces and a bridge, which `stop` removes; /etc/hosts is replaced only
for the nodes. Daemons are ended by the pids in their pid files.
"""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

from tests.support import deadlines

NODES = ("prime1", "prime2")
SUBNET = "10.78.0"
BRIDGE = "primebr"
CORES = len(os.sched_getaffinity(0))
GPUS = 8
"""Number of GPUs of a node, which exist for Slurm alone."""
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")


def missing() -> str | None:
    """Return why the lab cannot run on this machine, or None if it can."""
    if os.geteuid():
        return "the Slurm lab needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"the Slurm lab needs {', '.join(absent)} (apt-get install slurmctld slurmd slurm-client munge iproute2)"
    if subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, check=False
    ).returncode:
        return "the Slurm lab needs namespaces, which this machine does not allow"
    if subprocess.run(["ip", "link", "show", BRIDGE], capture_output=True, check=False).returncode == 0:
        return f"another Slurm lab is up (bridge {BRIDGE})"
    return None


def confines() -> bool:
    """Return whether Slurm can confine tasks to their cores, memory and GPUs by cgroups on this machine."""
    # Version 2 of cgroups would need systemd.
    names = ("cpuset", "devices", "memory")
    return all(os.access(Path("/sys/fs/cgroup", name, "cgroup.procs"), os.W_OK) for name in names)


class SlurmLab:
    """A Slurm cluster between `start` and `stop`, and the commands that act on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    @property
    def gpu_files(self) -> list[Path]:
        """The device files of a node's GPUs, which the nodes share."""
        return [self.folder / "gpus" / str(number) for number in range(GPUS)]

    def start(self) -> None:
        """Start both nodes. Raises AssertionError with the logs if they do not become idle."""
        for name in ("state", "log", "run", "munge", "gpus", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self._make_network()
        self._write_configuration()
        self._run(
            "munged", "--force", *(f"--{key}={self.folder / value}" for key, value in self._munge().items())
        )
        self._run("slurmctld")
        for node in NODES:
            self.start_node(node)
        self._wait_for_nodes()

    def start_node(self, node: str) -> None:
        """Start a node's daemon in its network namespace, with its host name."""
        script = f"mount --bind {self.folder}/hosts /etc/hosts; hostname {node}; exec slurmd -N {node}"
        self._run("nsenter", f"--net=/run/netns/{node}", "unshare", "--uts", "--mount", "sh", "-c", script)

    def stop(self) -> None:
        """End jobs and daemons, and remove the networks; missing ones are ignored."""
        jobs = self._quiet("squeue", "-h", "-o", "%A").split()
        if jobs:
            self._quiet("scancel", "--signal=KILL", *jobs)
            self._quiet("scancel", *jobs)
            until(lambda: not self._quiet("squeue", "-h", "-o", "%A").split(), 15.0)
        for name in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "munged"):
            self._end(self.pid_of(name))
        for node in NODES:
            for pid in self.pids_in(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._quiet("ip", "netns", "del", node)
        self._quiet("ip", "link", "del", BRIDGE)

    def pid_of(self, daemon: str) -> int | None:
        """Return the pid of slurmd.NODE, slurmctld or munged; None if it has no pid file."""
        try:
            return int((self.folder / "run" / f"{daemon}.pid").read_text())
        except (OSError, ValueError):
            return None

    def pids_in(self, node: str) -> list[int]:
        """Return the pids of the processes in a node's network namespace."""
        return [int(pid) for pid in self._quiet("ip", "netns", "pids", node).split()]

    def cut(self, node: str, is_cut: bool) -> None:
        """Disconnect a node from the network, or reconnect it."""
        self._run("ip", "link", "set", f"v{node}", "down" if is_cut else "up")

    def configure(self, key: str, value: str) -> None:
        """Change a setting of the running cluster; an empty value removes it."""
        path = self.folder / "slurm.conf"
        kept = [line for line in path.read_text().splitlines() if not line.startswith(f"{key}=")]
        path.write_text("\n".join([*kept, *([f"{key}={value}"] if value else [])]) + "\n")
        self._run("scontrol", "reconfigure")

    def cancel(self, job: str) -> None:
        """Cancel a job."""
        self._run("scancel", job)

    def update(self, job: str, change: str) -> None:
        """Change a job, such as TimeLimit=60."""
        self._run("scontrol", "update", f"JobId={job}", change)

    def update_partition(self, partition: str, change: str) -> None:
        """Change a partition, such as GraceTime=0."""
        self._run("scontrol", "update", f"PartitionName={partition}", change)

    def submit(self, *arguments: str, folder: Path) -> str:
        """Submit a job with sbatch, and return its id."""
        return self._run("sbatch", "--parsable", *arguments, cwd=folder).strip().split(";")[0]

    def job(self, job: str) -> dict[str, str]:
        """Return the fields that `scontrol show job` prints."""
        words = self._quiet("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, *states: str, timeout_s: float = 120.0) -> dict[str, str]:
        """Wait until a job is in one of these states. Raises AssertionError after the timeout."""
        until(lambda: self.job(job).get("JobState") in states, timeout_s)
        found = self.job(job)
        assert found.get("JobState") in states, found
        return found

    def _make_network(self) -> None:
        self._run("ip", "link", "add", BRIDGE, "type", "bridge")
        self._run("ip", "addr", "add", f"{SUBNET}.254/24", "dev", BRIDGE)
        self._run("ip", "link", "set", BRIDGE, "up")
        lines = ["127.0.0.1 localhost"]
        for number, node in enumerate(NODES, start=1):
            self._run("ip", "netns", "add", node)
            self._run("ip", "link", "add", f"v{node}", "type", "veth", "peer", "name", "eth0", "netns", node)
            self._run("ip", "link", "set", f"v{node}", "master", BRIDGE, "up")
            self._run("ip", "-n", node, "addr", "add", f"{SUBNET}.{number}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                self._run("ip", "-n", node, "link", "set", device, "up")
            lines.append(f"{SUBNET}.{number} {node}")
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")

    def _munge(self) -> dict[str, str]:
        key = self.folder / "munge" / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        names = {"key-file": "munge/munge.key", "socket": "munge/socket", "pid-file": "run/munged.pid"}
        return names | {"log-file": "log/munged.log", "seed-file": "munge/seed"}

    def _write_configuration(self) -> None:
        host = socket.gethostname().split(".")[0]
        settings = {
            "ClusterName": "prime",
            "SlurmctldHost": f"{host}({SUBNET}.254)",
            "SlurmctldPort": 16917,
            "SlurmUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge/socket,cred_expire=10",
            "MpiDefault": "none",
            "ProctrackType": "proctrack/linuxproc",
            # A rank may use the cores and memory that it has asked for, as on a cluster that several users share.
            "TaskPlugin": "task/affinity" + (",task/cgroup" if confines() else ""),
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "DefMemPerCPU": 100,
            "GresTypes": "gpu",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": 2,
            "SlurmdTimeout": 15,
            "KillWait": 5,
            "OverTimeLimit": 5,
            "MinJobAge": 3600,
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SlurmctldParameters": "preempt_send_user_signal",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1",
            "MailProg": "/bin/true",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": f"{self.folder}/spool.%n",
            "SlurmctldPidFile": self.folder / "run" / "slurmctld.pid",
            "SlurmdPidFile": f"{self.folder}/run/slurmd.%n.pid",
            "SlurmctldLogFile": self.folder / "log" / "slurmctld.log",
            "SlurmdLogFile": f"{self.folder}/log/slurmd.%n.log",
        }
        lines = [f"{key}={value}" for key, value in settings.items()]
        for number, node in enumerate(NODES, start=1):
            address = f"NodeAddr={SUBNET}.{number} Port=16918"
            size = f"CPUs={CORES} RealMemory=500000 Gres=gpu:{GPUS} State=UNKNOWN"
            lines.append(f"NodeName={node} NodeHostname={node} {address} {size}")
        nodes = f"Nodes={','.join(NODES)} MaxTime=INFINITE State=UP"
        lines.append(f"PartitionName=main {nodes} Default=YES PriorityTier=1 GraceTime=60")
        lines.append(f"PartitionName=urgent {nodes} PriorityTier=2 PreemptMode=OFF")
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        for path in self.gpu_files:
            # Device nodes without a driver: opening one is an error, which tells whether the cgroup forbids it.
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 200 + int(path.name)))
        gres = "".join(f"Name=gpu File={path}\n" for path in self.gpu_files)
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\n{gres}")
        limits = "".join(f"Constrain{what}=yes\n" for what in ("Cores", "Devices", "RAMSpace"))
        (self.folder / "cgroup.conf").write_text(limits)

    def _wait_for_nodes(self) -> None:
        up = lambda: set(self._quiet("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()) == set(NODES)  # noqa: E731
        until(up, 30.0)
        logs = "".join(path.read_text()[-2000:] for path in (self.folder / "log").glob("slurm*.log"))
        assert up(), logs

    def _end(self, pid: int | None) -> None:
        if pid is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                until(lambda: not Path(f"/proc/{pid}").exists(), 5.0)

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=deadlines.seconds(30),
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def _quiet(self, *command: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(
                command,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=deadlines.seconds(20),
                check=False,
            ).stdout
        return ""


def until(is_done, timeout_s: float, poll_s: float = 0.2) -> bool:
    """Wait for a condition, and return whether it became true before the timeout."""
    deadline = time.monotonic() + deadlines.seconds(timeout_s)
    while time.monotonic() < deadline:
        if is_done():
            return True
        time.sleep(poll_s)
    return False
