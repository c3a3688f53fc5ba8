"""``nodemem controller``: the operator, in a cluster or beside one."""

import argparse
import logging
import sys
from pathlib import Path

from nodemem.cli.options import positive_seconds

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "controller",
        help="run the controller: flags exposed pods, rolls out TmpfsPolicies, shows stale nodes",
        description="Flag the pods in which the kernel would kill the wrong process (OomExposure, Events), tell each "
        "node the tmpfs limits that TmpfsPolicies want there, a few nodes at a time, show which nodes' agents are "
        "silent, remove the reports of nodes that are gone. Several replicas may run: the one that holds the Lease "
        "writes.",
    )
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: the service account of the pod it runs in")
    parser.add_argument(
        "--namespace", metavar="NS", help="namespace of the Lease (default: that of the pod, else nodemem-system)"
    )
    parser.add_argument("--lease", metavar="NAME", default="nodemem-controller", help="default: nodemem-controller")
    parser.add_argument(
        "--node-conditions",
        action="store_true",
        help="also set the conditions ShmemPressure and OomMisselectionExposed on Nodes; without it they are removed",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDR:PORT",
        type=_address,
        default=("0.0.0.0", 8080),
        help="of /healthz, /readyz and /metrics (default: 0.0.0.0:8080; port 0: any; none: not served)",
    )
    parser.add_argument(
        "--stale-after",
        metavar="SECONDS",
        type=positive_seconds,
        default=900.0,
        help="silence after which a node's report is stale (default: 900, three heartbeats)",
    )
    parser.add_argument(
        "--gone-after",
        metavar="SECONDS",
        type=positive_seconds,
        default=300.0,
        help="how long the report of a Node that is gone is kept (default: 300)",
    )
    parser.add_argument(
        "--resync",
        metavar="SECONDS",
        type=positive_seconds,
        default=300.0,
        help="how often names are compared with a LIST (default: 300; exposures five times as often)",
    )
    parser.add_argument("--verbose", action="store_true", help="log what kopf does, too")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """0 ended by a signal; 1 a part of it failed."""
    try:
        from nodemem.controller import main
        from nodemem.controller.state import Options
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("kopf", "kubernetes", "aiohttp"):
            raise
        print(
            f"nodemem: the controller needs {error.name}, which is not installed: pip install 'nodemem[controller]'",
            file=sys.stderr,
        )
        return 1
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    if not args.verbose:
        logging.getLogger("kopf").setLevel(logging.WARNING)
    config = main.Config(
        kubeconfig=args.kubeconfig,
        namespace=args.namespace or _own_namespace(),
        lease=args.lease,
        listen=args.listen,
        options=Options(
            node_conditions=args.node_conditions,
            stale_seconds=args.stale_after,
            gone_seconds=args.gone_after,
            exposures_seconds=args.resync / 5,
            names_seconds=args.resync,
        ),
    )
    return main.serve(config)


def _own_namespace() -> str:
    try:
        return _NAMESPACE_FILE.read_text().strip() or "nodemem-system"
    except OSError:
        return "nodemem-system"


def _address(text: str) -> tuple[str, int] | None:
    if text == "none":
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ADDR:PORT, such as 127.0.0.1:8080, or none")
    return host.strip("[]") or "0.0.0.0", int(port)
