"""Nodes whose agents are simulated, to watch a rollout of limits: each answers its report's spec as an agent would."""

import secrets
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from cluster.controllerlab import MANAGER, Object, add_node, now, write_report
from cluster.controlplane import ApiError, ControlPlane
from nodemem.node.status import API_VERSION

AGENT = "nodemem-agent"
MIB, GIB = 1 << 20, 1 << 30
REPORTS = f"/apis/{API_VERSION}/memoryreports"
POLICIES = f"/apis/{API_VERSION}/tmpfspolicies"
Answer = Callable[[str, Object], Object | None]
_NOTHING: tuple[int, list[Object], list[Object]] = (1, [], [])


def tmpfs(path: str = "/run", *, size: int = 16 * GIB, used: int = GIB, scope: str = "Host", **owner: str) -> Object:
    return {
        "device": "0:25",
        "mountPoint": path,
        "scope": scope,
        "owner": {"kind": scope, **owner},
        "sizeBytes": size,
        "usedBytes": used,
    }


def holds(limit: Object, state: str = "InSync", message: str | None = None) -> Object:
    """What an agent says of a limit."""
    found = {
        "mountPoint": limit["mountPoint"],
        "requestedBytes": limit["sizeBytes"],
        "appliedBytes": limit["sizeBytes"],
        "originalBytes": 16 * GIB,
        "state": "Audit" if limit["mode"] == "Audit" else state,
    }
    return found | ({"message": message} if message else {}) | {"policy": limit["policy"]}


def cleans(entry: Object, state: str = "InSync", **more: Any) -> Object:
    """What an agent says of an entry of reclaim."""
    kind = "Journal" if "runtimeMaxUseBytes" in entry else "Tmpfiles"
    asked = {key: entry[key] for key in ("runtimeMaxUseBytes", "path", "age") if key in entry}
    state = "Audit" if entry["mode"] == "Audit" else state
    return {"kind": kind, **asked, "state": state, "policy": entry["policy"], **more}


class Agents:
    """All agents of a cluster, in one thread. ``behave(node, limit)`` gives the status of a limit, None for silence,
    and ``clean`` that of an entry of reclaim; ``left``: what nodes say of reclaim besides. ``seconds``: how long each
    takes. ``mounts``: what each node has."""

    def __init__(
        self, cluster: ControlPlane, names: Iterable[str], *mounts: Object, seconds: float = 0.0, **labels: str
    ) -> None:
        self._cluster = cluster
        self.names = list(names)
        self.mounts = list(mounts) or [tmpfs()]
        self.seconds = seconds
        self.behave: Answer = lambda _name, limit: holds(limit)
        self.clean: Answer = lambda _name, entry: cleans(entry)
        self.left: dict[str, list[Object]] = {}
        self.away: set[str] = set()
        self.nodes = {name: add_node(cluster, name) for name in self.names}
        for name in self.names:
            if labels:
                cluster.kubectl("label", "node", name, *(f"{key}={value}" for key, value in labels.items()))
            write_report(cluster, self.nodes[name], tmpfs=self.mounts, observedGeneration=1)
        self._seen: dict[str, tuple[int, float]] = {}
        self._said: dict[str, tuple[int, list[Object], list[Object]]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Agents":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for name in self.names:
            for path in (f"/api/v1/nodes/{name}", f"{REPORTS}/{name}"):
                try:
                    self._cluster.request("DELETE", path)
                except ApiError as error:
                    if error.code != 404:
                        raise

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            try:
                found = self._cluster.request("GET", REPORTS)["items"]
            except (ApiError, OSError):
                continue
            for each in found:
                name, generation = each["metadata"]["name"], each["metadata"]["generation"]
                if name not in self.nodes or name in self.away or self._said.get(name, _NOTHING)[0] == generation:
                    continue
                if self._seen.get(name, (0, 0.0))[0] != generation:
                    self._seen[name] = (generation, time.monotonic() + self.seconds)
                if time.monotonic() >= self._seen[name][1]:
                    self._answer(name, each)

    def _answer(self, name: str, report: Object) -> None:
        said = [self.behave(name, each) for each in limits_of(report)]
        cleaned = [self.clean(name, each) for each in reclaim_of(report)]
        if None in said or None in cleaned:
            return
        with self._lock:
            former = self._said.get(name, _NOTHING)
            self._said[name] = (
                report["metadata"]["generation"],
                [each for each in said if each is not None],
                [each for each in cleaned if each is not None],
            )
            try:
                self._write(name, self.mounts)
            except (ApiError, OSError):
                self._said[name] = former

    def heartbeat(self, name: str, *, used: int) -> None:
        """The same once more, with other figures."""
        with self._lock:
            self._write(name, [each | {"usedBytes": used} for each in self.mounts], observed_at=now(ago_seconds=-1))

    def says_of_reclaim(self, name: str, *said: Object) -> None:
        """Besides what it answers, from now on."""
        with self._lock:
            self.left[name] = list(said)
            self._write(name, self.mounts)

    def _write(self, name: str, mounts: list[Object], *, observed_at: str | None = None) -> None:
        generation, said, cleaned = self._said.get(name, _NOTHING)
        write_report(
            self._cluster,
            self.nodes[name],
            observed_at=observed_at,
            tmpfs=mounts,
            limits=said,
            reclaim=cleaned + self.left.get(name, []),
            observedGeneration=generation,
        )


def reclaim_of(report: Object) -> list[Object]:
    found: Object = report.get("spec", {}).get("reclaim", {})
    return [*([found["journal"]] if "journal" in found else []), *found.get("tmpfiles", [])]


def limits_of(report: Object) -> list[Object]:
    found: list[Object] = report.get("spec", {}).get("tmpfsLimits", [])
    return found


def limits(cluster: ControlPlane) -> dict[str, list[tuple[str, int, str, str]]]:
    """What each node is told: mount point, size, mode and policy."""
    return {
        each["metadata"]["name"]: [
            (limit["mountPoint"], limit["sizeBytes"], limit["mode"], limit["policy"]) for limit in limits_of(each)
        ]
        for each in cluster.request("GET", REPORTS)["items"]
    }


def tmpfs_policy(cluster: ControlPlane, name: str, *, size: str = "2Gi", **spec: Any) -> Object:
    rules = spec.pop("rules", [{"scope": "Host", "path": "/run", "size": size}])
    body = {"apiVersion": API_VERSION, "kind": "TmpfsPolicy", "metadata": {"name": name}}
    return cluster.apply(body | {"spec": {"rules": rules, "mode": "Enforce", **spec}})[0]


def policy(cluster: ControlPlane, name: str) -> Object:
    found: Object = cluster.request("GET", f"{POLICIES}/{name}")
    return found


def policy_is_gone(cluster: ControlPlane, name: str) -> bool:
    try:
        policy(cluster, name)
    except ApiError as error:
        return error.code == 404
    return False


def said(item: Object, kind: str) -> tuple[str, str, str]:
    """Status, reason and message of a condition."""
    conditions = item.get("status", {}).get("conditions", [])
    found = next((each for each in conditions if each["type"] == kind), None)
    return ("", "", "") if found is None else (found["status"], found["reason"], found["message"])


def counts(item: Object) -> dict[str, int]:
    found: dict[str, int] = item.get("status", {}).get("nodes", {})
    return {name: number for name, number in found.items() if number}


def told(cluster: ControlPlane, names: Iterable[str]) -> list[tuple[str, str]]:
    """Of these nodes' reports, in the order in which the API server received them: "told" where the controller wrote
    the spec, "answer" where the agent wrote the status."""
    return [(what, name) for what, name, code in _writes(cluster, names) if code < 300]


def cut_off(cluster: ControlPlane, names: Iterable[str]) -> set[str]:
    """Nodes whose spec was written by a controller that died before the answer: for the API server that is an error
    (504, context canceled), whether or not the write had reached etcd by then."""
    return {name for what, name, code in _writes(cluster, names) if what == "told" and code == 504}


def _writes(cluster: ControlPlane, names: Iterable[str]) -> list[tuple[str, str, int]]:
    wanted = set(names)
    found: list[tuple[str, str, str, int]] = []
    for each in cluster.writes():
        uri, _, query = each["requestURI"].partition("?")
        name, _, subresource = uri.removeprefix(f"{REPORTS}/").partition("/")
        if not uri.startswith(f"{REPORTS}/") or name not in wanted:
            continue
        received, code = each["requestReceivedTimestamp"], each["responseStatus"]["code"]
        manager = dict(part.partition("=")[::2] for part in query.split("&")).get("fieldManager")
        if manager == MANAGER and not subresource:
            found.append((received, "told", name, code))
        elif manager == AGENT and subresource:
            found.append((received, "answer", name, code))
    return [(what, name, code) for _, what, name, code in sorted(found)]


def most_at_once(cluster: ControlPlane, names: Iterable[str]) -> int:
    """Nodes that were told and had not answered, at the moment when there were most of them."""
    open_: set[str] = set()
    most = 0
    for what, name in told(cluster, names):
        if what == "told":
            open_.add(name)
        else:
            open_.discard(name)
        most = max(most, len(open_))
    return most


def names(number: int) -> list[str]:
    """Of nodes that no other test has."""
    prefix = secrets.token_hex(2)
    return [f"n{prefix}-{each:03d}" for each in range(number)]


def remove_policies(cluster: ControlPlane) -> None:
    """All of them, their finalizers included."""
    for each in cluster.request("GET", POLICIES)["items"]:
        path = f"{POLICIES}/{each['metadata']['name']}"
        cluster.request("PATCH", path, {"metadata": {"finalizers": None}})
        if "deletionTimestamp" not in each["metadata"]:
            cluster.request("DELETE", path)
