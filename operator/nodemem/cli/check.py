"""``nodemem check``: does nodemem work in this cluster? What ``helm test`` runs."""

import argparse
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from nodemem.agent.client import ApiError, Client
from nodemem.agent.config import ConfigError, from_kubeconfig, in_cluster
from nodemem.api import resources
from nodemem.cli.options import positive_seconds

_SELECTOR = "app.kubernetes.io/name=nodemem,app.kubernetes.io/component=agent"
_EACH_SECONDS = 2.0
_NAMED = 10


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "check",
        help="does nodemem work in this cluster?",
        description="Wait until every pod of the agent has written its node's MemoryReport since it started. Needs the "
        "rights to list memoryreports, and pods in that namespace. Exit codes: 0 they all have; 1 the time is over, or "
        "the API server refused, and it is said who has not.",
    )
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: the service account of the pod it runs in")
    parser.add_argument("--namespace", metavar="NS", default="nodemem-system", help="where the agents run")
    parser.add_argument("--selector", metavar="LABELS", default=_SELECTOR, help=f"of their pods (default: {_SELECTOR})")
    parser.add_argument(
        "--wait", metavar="SECONDS", type=positive_seconds, default=120.0, help="how long at most (default: 120)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    try:
        client = Client(from_kubeconfig(args.kubeconfig) if args.kubeconfig else in_cluster())
    except ConfigError as error:
        print(f"nodemem check: {error}", file=sys.stderr)
        return 1
    deadline = time.monotonic() + args.wait
    while True:
        try:
            pods = client.get(f"/api/v1/namespaces/{args.namespace}/pods", labelSelector=args.selector)["items"]
            missing = unheard(pods, client.get(resources.MEMORY_REPORT.path())["items"])
            if pods and not missing:
                print(f"{len(pods)} of {len(pods)} agents have reported.")
                return 0
            said = _sentence(args.namespace, len(pods), missing)
        except ApiError as error:
            said = f"The API server: {error.message}"
        if time.monotonic() >= deadline:
            print(said)
            return 1
        time.sleep(_EACH_SECONDS)


def unheard(pods: Iterable[Mapping[str, Any]], reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """Who has not reported since it started, and why that may be. Both times are of the node's own clock."""
    observed = {each["metadata"]["name"]: each.get("status", {}).get("observedAt") for each in reports}
    missing = []
    for pod in pods:
        name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
        started, seen = pod.get("status", {}).get("startTime"), observed.get(node)
        if node is None:
            missing.append(f"{name} is not on a node yet")
        elif started is None:
            missing.append(f"{name} has not started on {node}")
        elif seen is None:
            missing.append(f"{node} has no report")
        elif datetime.fromisoformat(seen) < datetime.fromisoformat(started):
            missing.append(f"{node} has a report from before {name} started")
    return missing


def _sentence(namespace: str, pods: int, missing: list[str]) -> str:
    if not pods:
        why = f"kubectl describe daemonset --namespace {namespace}"
        return (
            f"There is no pod of the agent in namespace {namespace}; '{why}' says why. Most often it is Pod Security"
            " Admission, where the namespace lacks the label pod-security.kubernetes.io/enforce=privileged."
        )
    more = f", and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return f"{pods - len(missing)} of {pods} agents have reported: {', '.join(missing[:_NAMED])}{more}."
