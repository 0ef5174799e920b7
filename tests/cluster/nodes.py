"""Several nodes on one machine: each a network namespace with an address, a host name and links that can be cut.

Needs root and iproute2. As Debian and Ubuntu install it, a node's own name means 127.0.1.1 there. The nodes share this
machine's disk, but each has a /tmp/ray and a ~/.cache of its own: only what lies in a shared folder is seen by all.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PORT = 36379
JOBS_PORT = 38265
STORE_BYTES = 150_000_000
# as in cluster.yaml, and quicker: a node that is gone counts as dead after 4 x (1 + 2) s instead of 3 x (3 + 5)
QUICK = {
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}
ENVIRONMENT = QUICK | {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "ab" * 32,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_enable_open_telemetry": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",
}
REPOSITORY = Path(__file__).parents[2]
ON_A_NODE = """
i=$1; folder=$2; shift 2
hostname node$i
mount --bind $folder/ray$i /tmp/ray; mount --bind $folder/cache$i $HOME/.cache; mount --bind $folder/hosts$i /etc/hosts
mount --bind $folder/resolv /etc/resolv.conf
exec "$@"
"""


def missing() -> str | None:
    """Why there can be no nodes here; None when there can."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if not shutil.which("ip"):
        return "no iproute2 (ip)"
    tried = subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


NETWORKS = itertools.count()  # of this process


def ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert not (check and done.returncode), f"ip {' '.join(arguments)}: {done.stderr}"


class Nodes:
    """Nodes 0 (the head, without CPUs), 1, 2, ...

    Args:
        folder: For what each has of its own; a short path, as there are sockets in it.
        count: How many.
        cpus: Of each but the head.
    """

    def __init__(self, folder: Path, count: int, cpus: int = 3) -> None:
        self.folder, self.count, self.cpus = folder, count, cpus
        number = (7 * os.getpid() + next(NETWORKS)) % 10_000  # two of a process may be up
        self.bridge, self.prefix = f"rb{number}", f"rk{number}"
        self.subnet = f"10.{100 + number // 250}.{number % 250}"
        self.environment = dict(ENVIRONMENT)

    def address(self, node: int) -> str:
        return f"{self.subnet}.{node + 1}"

    @property
    def here(self) -> str:
        """This machine's own address on their network."""
        return f"{self.subnet}.254"

    @property
    def ray_address(self) -> str:
        return f"{self.address(0)}:{PORT}"

    # ------------------------------------------------------------ links

    def up(self) -> None:
        # nobody answers there at once: a name server that is out of reach would cost a minute in each process group
        (self.folder / "resolv").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        Path("/tmp/ray").mkdir(exist_ok=True)
        (Path.home() / ".cache").mkdir(exist_ok=True)
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.here}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for node in range(self.count):
            name, link = f"{self.prefix}n{node}", self.link(node)
            ip("netns", "add", name)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", link, "master", self.bridge, "up")
            ip("-n", name, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "default", "via", self.here)
            for kind in ("ray", "cache"):
                (self.folder / f"{kind}{node}").mkdir()
            (self.folder / f"hosts{node}").write_text(f"127.0.0.1 localhost\n127.0.1.1 node{node}\n")

    def down(self) -> None:
        for node in range(self.count):
            self.kill(node)
            ip("link", "del", self.link(node), check=False)
            ip("netns", "del", f"{self.prefix}n{node}", check=False)
        ip("link", "del", self.bridge, check=False)

    def link(self, node: int) -> str:
        return f"{self.prefix}v{node}"

    def cut(self, node: int) -> None:
        """Silently drop all that goes to and from a node."""
        ip("link", "set", self.link(node), "down")

    def mend(self, node: int) -> None:
        ip("link", "set", self.link(node), "up")

    # ------------------------------------------------------------ processes

    def popen(self, node: int, command: list[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
        """A process on a node, in a session of its own; its output goes to the end of a file."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST"))}
        inside = ["ip", "netns", "exec", f"{self.prefix}n{node}", "unshare", "--uts", "bash", "-c", ON_A_NODE, "--"]
        with log.open("ab") as stream:
            return subprocess.Popen(
                [*inside, str(node), str(self.folder), *command], stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT, cwd=REPOSITORY, start_new_session=True,
                env=environment | self.environment | {"PYTHONPATH": str(REPOSITORY)} | more,
            )  # fmt: skip

    def run(self, node: int, command: list[str], seconds: float = 120, **more: str) -> str:
        """The output of a command on a node, which must succeed."""
        log = self.folder / f"run{time.monotonic_ns()}.log"
        code = self.popen(node, command, log, **more).wait(seconds)
        assert not code, f"{command}: exit code {code}\n{log.read_text()}"
        return log.read_text()

    def pids(self, node: int) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", f"{self.prefix}n{node}"], capture_output=True, text=True).stdout
        return [int(pid) for pid in found.split()]

    def find(self, begins: str, nodes: list[int] | None = None) -> list[int]:
        """Processes whose command line begins so, such as ``ray::ShardActor``."""
        found = []
        for node in range(self.count) if nodes is None else nodes:
            for pid in self.pids(node):
                if command_line(pid).startswith(begins):
                    found.append(pid)
        return found

    # ------------------------------------------------------------ Ray

    def head(self, *more: str, cpus: int = 0, jobs: bool = False) -> None:
        dashboard = ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={JOBS_PORT}"]
        self.start(
            0, "--head", f"--port={PORT}", f"--num-cpus={cpus}",
            *(dashboard if jobs else ["--include-dashboard=false"]), *more,
        )  # fmt: skip

    def join(self, node: int, **more: str) -> None:
        """A worker node; ``more`` is for the environment of all that runs on it."""
        self.start(node, f"--address={self.ray_address}", f"--num-cpus={self.cpus}", **more)

    def start(self, node: int, *arguments: str, **more: str) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={self.address(node)}"]
        self.run(node, [*ray, f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", *arguments], **more)

    def kill(self, node: int) -> None:
        """End all of a node at once, as when its machine is taken away."""
        while pids := self.pids(node):
            for pid in pids:
                kill(pid)
            time.sleep(0.05)

    def raylet(self, node: int) -> int:
        (pid,) = [pid for pid in self.pids(node) if "/raylet/raylet" in command_line(pid).split(" ")[0]]
        return pid

    def alive(self) -> int:
        """How many nodes the head counts as alive."""
        script = (
            "import ray; ray.init(log_to_driver=False, logging_level='ERROR');"
            "print('ALIVE', sum(n['Alive'] for n in ray.nodes()))"
        )
        said = self.run(0, [sys.executable, "-c", script], RAY_ADDRESS=self.ray_address)
        return int(said.rpartition("ALIVE")[2])


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def nodes_of(folder: Path, count: int, cpus: int = 3) -> Iterator[Nodes]:
    """Nodes without any Ray yet; all that runs on them ends with the block."""
    nodes = Nodes(folder, count, cpus)
    try:
        nodes.up()
        yield nodes
    finally:
        nodes.down()


def until(true: Callable[[], object], seconds: float, what: str) -> None:
    """Look again and again; an AssertionError when it does not become true in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)
