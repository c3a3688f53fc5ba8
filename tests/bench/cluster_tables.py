"""``python -m bench.cluster_tables``: what the controller computes, without an API server: CPU ms at several sizes.

Its tables are filled with reports as the agents write them; then the parts of its loop are called one by one. For what
the API server, kopf and the network add, see ``bench.cluster``.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.cluster_node import GIB, ModelNode
from nodemem.agent.bounded import bounded
from nodemem.api.convert import wire
from nodemem.controller import exposures
from nodemem.controller.client import Api
from nodemem.controller.limits import Planner
from nodemem.controller.limitwrites import LimitWriter
from nodemem.controller.lookup import Lookup
from nodemem.controller.state import Options, State
from nodemem.controller.writes import Writer
from nodemem.node.status import LimitStatus

Object = dict[str, Any]
LIMIT = {"mountPoint": "/run", "scope": "Host", "sizeBytes": 8 * GIB, "mode": "Enforce", "adjust": "Shrink"}
LIMIT |= {"headroomPercent": 10, "onDelete": "Restore", "policy": "cap-run"}


class Tables:
    """The controller's tables with so many nodes; ``held``: under a policy that every node holds."""

    def __init__(self, nodes: int, *, held: bool) -> None:
        api = Api(None, "bench")
        self.state = State(Options())
        self.planner = Planner(self.state)
        lookup = Lookup(api)
        self.writer = Writer(api, self.state, lookup, Options(), "bench", _nothing, _nothing)
        self.limit_writer = LimitWriter(api, self.state, self.planner, _nothing)
        self._held = held
        self._statuses = [json.dumps(bounded(ModelNode(kind).status(0.0))) for kind in range(6)]
        self._version = 0
        self.names = [f"node-{number:05d}" for number in range(nodes)]
        if held:
            self.policy(1)
        for number, name in enumerate(self.names):
            labels = {"kubernetes.io/hostname": name, "pool": f"pool-{number % 4}"}
            self.state.take("nodes", {"metadata": self._metadata(name, labels=labels), "status": {}})
            self.heartbeat(number)

    def policy(self, generation: int, size: str = "8Gi") -> None:
        rules = [{"scope": "Host", "path": "/run", "size": size}]
        spec = {"rules": rules, "mode": "Enforce", "rollout": {"maxConcurrent": "100%"}}
        metadata = self._metadata("cap-run", generation=generation, finalizers=["nodemem.io/limits"])
        self.state.take("tmpfs_policies", {"metadata": metadata, "spec": spec})

    def body(self, number: int, used: int = 0) -> Object:
        """As a watch brings it."""
        status = json.loads(self._statuses[number % len(self._statuses)])
        status["tmpfs"][0]["usedBytes"] += used
        status["observedAt"] = f"2030-01-01T00:00:{self._version % 60:02d}Z"
        status["observedGeneration"] = 2 if self._held else 1
        if self._held:
            said = LimitStatus("/run", 8 * GIB, 8 * GIB, 13 * GIB, "InSync", policy="cap-run", target_bytes=8 * GIB)
            status["limits"] = [wire(said)]
        spec = {"tmpfsLimits": [LIMIT]} if self._held else {}
        return {
            "metadata": self._metadata(self.names[number], generation=2 if self._held else 1),
            "spec": spec,
            "status": status,
        }

    def heartbeat(self, number: int, used: int = 0) -> bool:
        return self.state.take("reports", self.body(number, used))

    def look(self) -> int:
        """What the loop does at each turn; how many writes it plans."""
        now = time.monotonic()
        state = self.state
        stale = state.stale(now)
        claimed = exposures.claims(state.claimed(stale))
        wanted, undecided = exposures.wanted(claimed, {}, {}, state.policies())
        planned = self.plan(now)
        unnamed = state.unnamed()
        changes = exposures.changes(
            wanted, state.exposures, undecided=undecided, keep_nodes=(), unnamed=unnamed, now=now
        )
        writes = [
            *self.writer.exposures(changes),
            *self.writer.stale(state.stale(now)),
            *self.writer.gone_reports(now),
            *self.writer.node_conditions(wanted.values(), stale),
            *self.writer.policies(wanted.values(), now),
            *self.limit_writer.writes(planned, now),
        ]
        return len(writes)

    def plan(self, now: float) -> Any:
        self.planner.pods_needed()
        return self.planner.plan(self.state.stale(now), {}, None)

    def _metadata(self, name: str, **more: Any) -> Object:
        self._version += 1
        return {"name": name, "uid": f"uid-{name}", "resourceVersion": str(self._version), **more}


def _nothing() -> None:
    pass


def milliseconds(work: Callable[[], object], times: int) -> float:
    begun = time.process_time()
    for _ in range(times):
        work()
    return 1000 * (time.process_time() - begun) / times


def measure(nodes: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for held in (False, True):
        tables = Tables(nodes, held=held)
        gc.collect()
        gc.freeze()  # as the controller does
        words = "with limits held" if held else "without policies"
        bodies = iter([tables.body(number % nodes, number) for number in range(300)])
        found[f"one heartbeat, {words}"] = milliseconds(
            lambda t=tables, b=bodies: t.state.take("reports", next(b)), 300
        )
        tables.look()
        found[f"a look, nothing new, {words}"] = milliseconds(tables.look, 5)
    numbers = iter(range(10))

    def one_changed() -> None:
        body = tables.body(next(numbers))
        body["status"]["tmpfs"][0]["sizeBytes"] = GIB
        tables.state.take("reports", body)
        tables.look()

    found["a look after one node changed"] = milliseconds(one_changed, 5)
    generations = iter(range(2, 10))

    def edited() -> None:
        tables.policy(generation := next(generations), f"{generation}Gi")
        if tables.look() < nodes:
            raise SystemExit("bench: not every node is to be told; no figures of that")

    found["a look after the policy was edited"] = milliseconds(edited, 2)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster_tables", description=__doc__)
    parser.add_argument("--nodes", type=int, action="append", help="a size; several to compare (default: 500, 5000)")
    sizes = parser.parse_args().nodes or [500, 5000]
    measured = [measure(each) for each in sizes]
    print(f"{'CPU ms, by nodes':<46}" + "".join(f"{each:>10,}" for each in sizes) + f"{'grows':>8}")
    for words, first in measured[0].items():
        cells = "".join(f"{each[words]:>10.2f}" for each in measured)
        print(f"{words:<46}{cells}{measured[-1][words] / first:>7.1f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
