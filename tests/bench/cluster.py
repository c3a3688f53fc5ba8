"""``python -m bench.cluster``: the controller with thousands of nodes, on a real API server.

Nodes with a MemoryReport each, written by the agents' own publishing code (``bench.cluster_agents``), and a controller
as a process with the rights it has in use. What is measured is the controller's own CPU time and memory, by /proc, and
what it writes, by the API server's audit log: the rest of the cluster runs on the same cores and costs what it costs.

Each size is a cluster of its own; the last table compares them. Status 1 if a budget is broken.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.controllerlab import MANAGER, Controller, plane
from cluster.controlplane import ApiError, ControlPlane
from cluster.limitslab import POLICIES, REPORTS, counts, policy, policy_is_gone, tmpfs_policy

HEARTBEAT_SECONDS = 300.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Budget:
    """``must`` and ``aim`` hold for 5,000 nodes; None: for information."""

    must: float | None = None
    aim: float | None = None


ROWS: dict[str, tuple[str, Budget]] = {
    "object_kib": ("one report in the API server, KiB", Budget(16, 8)),
    "bookkeeping_kib": ("  of it, managedFields", Budget()),
    "list_mb": ("LIST of all reports, MB", Budget()),
    "names_mb": ("LIST of their metadata, MB", Budget()),
    "start_s": ("start until the tables are whole, s", Budget()),
    "start_cpu_s": ("  CPU, s", Budget()),
    "start_rss_mb": ("  RSS then, MB", Budget(300, 150)),
    "start_peak_mb": ("  peak RSS (VmHWM), MB", Budget(300, 150)),
    "idle_percent": ("idle, CPU in % of a core", Budget()),
    "idle_writes": ("  writes", Budget(0)),
    "beat_percent": ("a heartbeat of all in 5 min, % of a core", Budget(25, 10)),
    "beat_ms": ("  CPU of one heartbeat, with what time costs, ms", Budget()),
    "beat_writes": ("  writes caused", Budget(0)),
    "beat_looks": ("  looks caused, but for time", Budget()),
    "new_s": ("a new policy, to every limit written, s", Budget(120, 30)),
    "new_cpu_s": ("  CPU, s", Budget()),
    "new_server_s": ("  CPU of the API server, s", Budget()),
    "new_settled_s": ("  to its status in sync, s", Budget()),
    "new_settled_cpu_s": ("  CPU till then, s", Budget()),
    "new_looks": ("  looks at everything", Budget()),
    "new_writes": ("  writes for each node", Budget()),
    "held_percent": ("the same heartbeats with limits held, %", Budget(25, 10)),
    "held_writes": ("  writes caused", Budget(0)),
    "held_looks": ("  looks caused, but for time", Budget()),
    "held_idle_percent": ("idle with limits held, %", Budget()),
    "restart_s": ("controller killed and started again, s", Budget()),
    "restart_writes": ("  writes", Budget(0)),
    "restart_peak_mb": ("  peak RSS (VmHWM), MB", Budget(300, 150)),
    "handover_s": ("holder of the Lease killed, to the next, s", Budget()),
    "handover_writes": ("  writes", Budget(0)),
    "outage_s": ("API server killed, etcd compacted: whole again, s", Budget()),
    "outage_cpu_s": ("  CPU, s", Budget()),
    "outage_writes": ("  writes", Budget(0)),
    "outage_lists": ("  LISTs of reports that it took (by 410 Gone)", Budget()),
    "edit_s": ("the policy edited, to every limit written, s", Budget(120, 30)),
    "edit_cpu_s": ("  CPU, s", Budget()),
    "edit_server_s": ("  CPU of the API server, s", Budget()),
    "delete_s": ("the policy deleted, to every limit taken back, s", Budget(120, 30)),
    "delete_cpu_s": ("  CPU, s", Budget()),
    "delete_settled_s": ("  to its end, every size restored, s", Budget()),
    "rss_mb": ("RSS at the end, MB", Budget(300, 150)),
    "peak_mb": ("peak RSS of all that (VmHWM), MB", Budget(300, 150)),
    "ours_percent": ("of the machine's CPU time: this benchmark, %", Budget()),
    "others_percent": ("  others, %", Budget()),
}


class Process:
    """CPU time and memory of a process, as the kernel counts them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def megabytes(self, name: str) -> float:
        for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise LookupError(name)


class Audit:
    """What controllers wrote, read from the end of the API server's audit log as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._rest = b""

    def more(self) -> list[dict[str, Any]]:
        """The writes that were answered since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            stream.seek(self._at)
            data = self._rest + stream.read()
            self._at = stream.tell()
        *lines, self._rest = data.split(b"\n")
        mine = f'"userAgent":"{MANAGER}/'.encode()
        return [json.loads(line) for line in lines if mine in line]


class Agents:
    """The process with all agents."""

    def __init__(self, cluster: ControlPlane) -> None:
        log = cluster.directory / "agents.log"
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.cluster_agents", str(cluster.kubeconfig)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> "Agents":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def do(self, **command: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("bench: the agents ended")
        found: dict[str, Any] = json.loads(answer)
        return found

    def written(self) -> int:
        return sum(self.do()["writes"].values())


@dataclass(slots=True)
class Bench:
    cluster: ControlPlane
    agents: Agents
    nodes: int
    audit: Audit
    controller: Controller
    values: dict[str, float] = field(default_factory=dict)
    causes: dict[str, Counter[str]] = field(default_factory=dict)
    ended_cpu_seconds: float = 0.0
    _told: set[str] = field(default_factory=set)

    @property
    def process(self) -> Process:
        return Process(self.controller.process.pid)

    @property
    def server(self) -> Process:
        return Process(self.cluster.pids()["kube-apiserver"])

    def cpu_seconds(self) -> float:
        """Of all that belongs to the cluster, as it is now."""
        pids = [*self.cluster.pids().values(), self.agents.pid, os.getpid()]
        if self.controller is not None:
            pids.append(self.controller.process.pid)
        return self.ended_cpu_seconds + sum(Process(pid).cpu_seconds() for pid in pids)

    def kill(self, pid: int) -> None:
        """SIGKILL, and note what it had used."""
        self.ended_cpu_seconds += Process(pid).cpu_seconds()
        os.kill(pid, signal.SIGKILL)

    def writes(self, key: str, seen: list[dict[str, Any]]) -> None:
        """Note how many there were, and to what."""
        self.values[key] = len(seen)
        kinds = Counter(
            f"{each['verb']} {each['objectRef'].get('resource')}/{each['objectRef'].get('subresource', '')}".rstrip("/")
            for each in seen
        )
        if kinds:
            self.causes[key] = kinds

    def looks(self) -> float:
        return self.controller.metric("reconciles_total")

    def say(self, text: str) -> None:
        """With what was measured since the last time: a run that is cut off has told something."""
        new = [f"{key} {value:.2f}" for key, value in self.values.items() if key not in self._told]
        self._told.update(self.values)
        print(f"  {time.strftime('%H:%M:%S')} {text}{': ' if new else ''}{', '.join(new)}", flush=True)


def until(ask: Callable[[], bool], what: str, seconds: float = 600, every: float = 0.2) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ask():
                return
        except (OSError, ApiError, AssertionError):
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: {what}: not within {seconds:.0f} s")
        time.sleep(every)


def start_controller(cluster: ControlPlane, name: str = "one") -> Controller:
    """As the Deployment runs it."""
    return Controller(cluster, "--resync=300", name=name)


def synced(controller: Controller) -> bool:
    if controller.process.poll() is not None:
        raise SystemExit(f"bench: the controller ended:\n{controller.log()[-3000:]}")
    return controller.metric("synced") == 1 and controller.metric("reconciles_total") >= 1


def measure_objects(bench: Bench) -> None:
    whole, bare, kept, names, query = 0, 0, 0, 0, "?limit=500"
    largest = 0
    while True:
        page = bench.cluster.request("GET", f"{REPORTS}{query}")
        for item in page["items"]:
            size = len(json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode())
            fields = item["metadata"].pop("managedFields", None)
            kept += len(json.dumps(fields, separators=(",", ":")))
            names += len(json.dumps(item["metadata"] | {"managedFields": fields}, separators=(",", ":")))
            whole, bare, largest = whole + size, bare + 1, max(largest, size)
        more = page["metadata"].get("continue")
        if not more:
            break
        query = f"?limit=500&continue={more}"
    bench.values["object_kib"] = largest / 1024
    bench.values["bookkeeping_kib"] = kept / bare / 1024
    bench.values["list_mb"] = whole / 1e6
    bench.values["names_mb"] = names / 1e6


def measure_start(bench: Bench) -> None:
    begun = time.monotonic()
    bench.controller = start_controller(bench.cluster)
    until(lambda: synced(bench.controller), "the tables are whole")
    values = bench.values
    values["start_s"] = time.monotonic() - begun
    values["start_cpu_s"] = bench.process.cpu_seconds()
    values["start_rss_mb"] = bench.process.megabytes("VmRSS")
    values["start_peak_mb"] = bench.process.megabytes("VmHWM")
    bench.audit.more()


def measure_idle(bench: Bench, seconds: float, key: str = "idle") -> float:
    """Nobody does anything. Returns the share of a core."""
    time.sleep(2)
    bench.audit.more()
    begun, cpu = time.monotonic(), bench.process.cpu_seconds()
    time.sleep(seconds)
    share = (bench.process.cpu_seconds() - cpu) / (time.monotonic() - begun)
    bench.values[f"{key}_percent"] = 100 * share
    bench.writes(f"{key}_writes", bench.audit.more())
    return share


def measure_beats(bench: Bench, speed: float, idle: float, key: str) -> None:
    """A heartbeat of every node, in 5 minutes of the agents' time, which may run faster than ours. What the controller
    does without heartbeats is counted for the whole 5 minutes."""
    bench.audit.more()
    looks, before = bench.looks(), bench.agents.written()
    begun, cpu = time.monotonic(), bench.process.cpu_seconds()
    bench.agents.do(speed=speed)
    until(lambda: bench.agents.written() - before >= bench.nodes, "all heartbeats", 900, 0.5)
    bench.agents.do(speed=0)
    time.sleep(2)
    beats, seconds = bench.agents.written() - before, time.monotonic() - begun
    spent = bench.process.cpu_seconds() - cpu
    by_time = idle * max(0.0, HEARTBEAT_SECONDS - seconds)
    bench.values[f"{key}_percent"] = 100 * (spent / beats * bench.nodes + by_time) / HEARTBEAT_SECONDS
    bench.values[f"{key}_ms"] = 1000 * spent / beats
    bench.values[f"{key}_looks"] = bench.looks() - looks - seconds / 15
    bench.writes(f"{key}_writes", bench.audit.more())
    bench.say(f"{beats} heartbeats in {seconds:.0f} s")


def _when(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["stageTimestamp"].replace("Z", "+00:00")).timestamp()


def measure_change(
    bench: Bench, key: str, change: Callable[[], object], done: Callable[[], bool] | None = None
) -> None:
    """A change of a policy: until the last limit is written while the agents stand still, then until they have answered
    and ``done`` says so."""
    bench.audit.more()
    looks, cpu, server = bench.looks(), bench.process.cpu_seconds(), bench.server.cpu_seconds()
    wall, begun, seen, told = time.time(), time.monotonic(), [], set[str]()
    change()

    def all_told() -> bool:
        more = bench.audit.more()
        seen.extend(more)
        told.update(each["objectRef"]["name"] for each in more if _is_spec(each))
        return len(told) == bench.nodes

    until(all_told, f"{key}: every limit written", 900)
    bench.values[f"{key}_s"] = max(_when(each) for each in seen if _is_spec(each)) - wall
    bench.values[f"{key}_cpu_s"] = bench.process.cpu_seconds() - cpu
    bench.values[f"{key}_server_s"] = bench.server.cpu_seconds() - server
    bench.say(f"{key}: written in {bench.values[f'{key}_s']:.1f} s")
    if done is not None:
        bench.agents.do(speed=2)
        until(done, f"{key}: every node in sync", 900, 1.0)
        bench.agents.do(speed=0)
        bench.values[f"{key}_settled_s"] = time.monotonic() - begun
        bench.values[f"{key}_settled_cpu_s"] = bench.process.cpu_seconds() - cpu
        bench.say(f"{key}: settled in {bench.values[f'{key}_settled_s']:.0f} s")
    bench.values[f"{key}_looks"] = bench.looks() - looks
    bench.writes(f"{key}_writes", [*seen, *bench.audit.more()])
    bench.values[f"{key}_writes"] /= bench.nodes


def _is_spec(event: dict[str, Any]) -> bool:
    about = event["objectRef"]
    return about.get("resource") == "memoryreports" and not about.get("subresource") and "name" in about


def in_sync(bench: Bench, generation: int) -> Callable[[], bool]:
    def ask() -> bool:
        found = policy(bench.cluster, "cap-run")
        said = found.get("status", {}).get("observedGeneration")
        return said == generation and counts(found) == {"matched": bench.nodes, "inSync": bench.nodes}

    return ask


def measure_restart(bench: Bench) -> None:
    bench.audit.more()
    bench.kill(bench.controller.process.pid)
    bench.controller.process.wait()
    begun = time.monotonic()
    bench.controller = start_controller(bench.cluster)
    until(lambda: synced(bench.controller), "the tables are whole again")
    bench.values["restart_s"] = time.monotonic() - begun
    bench.values["restart_peak_mb"] = bench.process.megabytes("VmHWM")
    bench.controller.until_looked_again()
    bench.writes("restart_writes", bench.audit.more())


def measure_handover(bench: Bench) -> None:
    standby = start_controller(bench.cluster, "two")
    until(lambda: standby.get("/readyz")[0] == 200 and standby.metric("memoryreports") == bench.nodes, "a standby")
    bench.audit.more()
    first, bench.controller = bench.controller, standby
    bench.kill(first.process.pid)
    first.process.wait()
    begun = time.monotonic()
    until(lambda: synced(standby), "the standby takes over")
    bench.values["handover_s"] = time.monotonic() - begun
    standby.until_looked_again()
    bench.writes("handover_writes", bench.audit.more())


def measure_outage(bench: Bench) -> None:
    """Every watch is cut, and what it would go on from is forgotten."""
    bench.audit.more()
    cpu = bench.process.cpu_seconds()
    bench.kill(bench.cluster.pids()["kube-apiserver"])
    bench.cluster.stop("kube-apiserver", signal.SIGKILL)
    bench.cluster.compact()
    begun = time.monotonic()
    bench.cluster.start_apiserver()
    # A change that only a watch tells of: an answer means that the controller hears again.
    generation = policy(bench.cluster, "cap-run")["metadata"]["generation"] + 1

    def poke() -> bool:
        bench.cluster.request("PATCH", f"{POLICIES}/cap-run", {"spec": {"rollout": {"maxFailures": generation}}})
        return True

    until(poke, "the API server takes a change")
    until(
        lambda: (
            policy(bench.cluster, "cap-run")["status"].get("observedGeneration") == generation
            and bench.controller.metric("leader") == 1
        ),
        "the controller hears of it",
    )
    bench.values["outage_s"] = time.monotonic() - begun
    time.sleep(10)
    bench.values["outage_cpu_s"] = bench.process.cpu_seconds() - cpu
    seen = bench.audit.more()
    bench.writes("outage_writes", [each for each in seen if each["objectRef"].get("resource") != "tmpfspolicies"])
    bench.values["outage_lists"] = requests_of(bench.cluster, "LIST", "memoryreports")


def requests_of(cluster: ControlPlane, verb: str, resource: str) -> float:
    """Of everybody, since the API server started."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in cluster.request("GET", "/metrics").splitlines()
        if line.startswith("apiserver_request_total{") and f'verb="{verb}"' in line and f'resource="{resource}"' in line
    )


@contextmanager
def size(nodes: int) -> Iterator[Bench]:
    """A cluster of so many nodes."""
    with ExitStack() as stack:
        cluster = stack.enter_context(plane())
        agents = stack.enter_context(Agents(cluster))
        begun = time.monotonic()
        agents.do(join=nodes)
        bench = Bench(cluster, agents, nodes, Audit(cluster.audit_log), None)  # type: ignore[arg-type]
        bench.say(f"{nodes} nodes joined in {time.monotonic() - begun:.0f} s")
        try:
            yield bench
        finally:
            if bench.controller is not None:
                bench.controller.process.kill()
                bench.controller.process.wait()


def measure(nodes: int, options: argparse.Namespace) -> Bench:
    with size(nodes) as bench, others_load(bench):
        everywhere = {"maxConcurrent": "100%", "maxFailures": 1}

        def policy_of(size: str) -> Callable[[], object]:
            return lambda: tmpfs_policy(bench.cluster, "cap-run", size=size, rollout=everywhere)

        measure_objects(bench)
        measure_start(bench)
        bench.say(f"controller started in {bench.values['start_s']:.1f} s")
        idle = measure_idle(bench, options.idle)
        measure_beats(bench, options.speed, idle, "beat")
        measure_change(bench, "new", policy_of("8Gi"), in_sync(bench, 1))
        idle = measure_idle(bench, options.idle, "held_idle")
        measure_beats(bench, options.speed, idle, "held")
        bench.values["peak_mb"] = bench.process.megabytes("VmHWM")
        measure_restart(bench)
        bench.say("restarted")
        measure_handover(bench)
        bench.say("handed over")
        measure_outage(bench)
        bench.say("API server came back")
        measure_change(bench, "edit", policy_of("6Gi"))
        measure_change(
            bench,
            "delete",
            lambda: bench.cluster.request("DELETE", f"{POLICIES}/cap-run"),
            lambda: policy_is_gone(bench.cluster, "cap-run"),
        )
        bench.values["rss_mb"] = bench.process.megabytes("VmRSS")
        bench.values["peak_mb"] = max(bench.values["peak_mb"], bench.process.megabytes("VmHWM"))
        return bench


@contextmanager
def others_load(bench: Bench) -> Iterator[None]:
    """How much of the machine's CPU time went to what isn't part of the benchmark: then seconds mean less."""
    before, ours = _busy_seconds(), bench.cpu_seconds()
    begun = time.monotonic()
    yield
    ours = bench.cpu_seconds() - ours
    whole = (time.monotonic() - begun) * (os.cpu_count() or 1)
    bench.values["others_percent"] = 100 * max(0.0, _busy_seconds() - before - ours) / whole
    bench.values["ours_percent"] = 100 * ours / whole


def _busy_seconds() -> float:
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system) / _TICKS


def print_table(measured: list[Bench]) -> bool:
    """True if every budget is kept, by the largest size."""
    kept = True
    sizes = "".join(f"{each.nodes:>10,}" for each in measured)
    print(f"\n{'nodes':<52}{sizes}{'grows' if len(measured) > 1 else '':>8}{'must':>8}{'aim':>8}")
    for key, (words, budget) in ROWS.items():
        found = [each.values.get(key) for each in measured]
        cells = "".join(f"{'' if value is None else f'{value:,.2f}':>10}" for value in found)
        first, last = found[0], found[-1]
        growth = f"{last / first:>7.1f}x" if len(found) > 1 and first and last else " " * 8
        over = budget.must is not None and last is not None and last > budget.must
        kept = kept and not over and last is not None
        mark = "  OVER" if over else "  above aim" if budget.aim is not None and last and last > budget.aim else ""
        must, aim = ("" if each is None else f"{each:g}" for each in (budget.must, budget.aim))
        print(f"{words:<52}{cells}{growth}{must:>8}{aim:>8}{mark}")
    for each in measured:
        for key, kinds in each.causes.items():
            if key.endswith("_writes") and ROWS.get(key, ("", Budget()))[1].must == 0:
                print(f"{each.nodes:,} nodes, {key}: {dict(kinds)}")
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, action="append", help="a size; several to compare (default: 500, 5000)")
    parser.add_argument("--idle", type=float, default=31.0, help="seconds of idleness that are measured (default: 31)")
    parser.add_argument(
        "--speed", type=float, default=5.0, help="of the agents' clock while all send a heartbeat (default: 5)"
    )
    options = parser.parse_args()
    measured = []
    for nodes in options.nodes or [500, 5000]:
        print(f"{nodes:,} nodes", flush=True)
        measured.append(measure(nodes, options))
    return 0 if print_table(measured) else 1


if __name__ == "__main__":
    sys.exit(main())
