"""Options that kubectl has, by the same names."""

import argparse
from typing import Any

from nodemem.cli.kubectl.cluster import Cluster, connect


def add_cluster(parser: argparse.ArgumentParser, *, namespace: bool = False, outermost: bool = False) -> None:
    """``outermost``: before the command, where the defaults are. ``namespace``: where it has a meaning; kubectl's users
    have -n in their fingers, and everywhere else it is taken and passed over."""
    group = parser.add_argument_group("cluster")

    def default(value: Any) -> Any:
        return value if outermost else argparse.SUPPRESS

    def said(text: str) -> str:
        return text if not outermost else argparse.SUPPRESS

    group.add_argument(
        "--kubeconfig", metavar="FILE", default=default(None), help=said("default: $KUBECONFIG, else ~/.kube/config")
    )
    group.add_argument("--context", metavar="NAME", default=default(None), help=said("context of the kubeconfig"))
    group.add_argument(
        "--as", dest="user", metavar="USER", default=default(None), help=said("ask as this user (impersonation)")
    )
    group.add_argument(
        "--request-timeout",
        type=_seconds,
        metavar="TIME",
        default=default(30.0),
        help=said("of one request, such as 10s or 1m (default: 30s)"),
    )
    group.add_argument(
        "-n",
        "--namespace",
        metavar="NS",
        default=default(None),
        help=said("namespace (default: that of the context)") if namespace else argparse.SUPPRESS,
    )
    group.add_argument(
        "-A",
        "--all-namespaces",
        action="store_true",
        default=default(False),
        help=said("in all namespaces") if namespace else argparse.SUPPRESS,
    )


def cluster_of(args: argparse.Namespace) -> Cluster:
    """Raises Trouble."""
    return connect(
        kubeconfig=args.kubeconfig,
        context=args.context,
        namespace=args.namespace,
        user=args.user,
        seconds=args.request_timeout,
    )


def _seconds(text: str) -> float:
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    number = text[:-1] if unit else text
    try:
        value = float(number) * (unit or 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a time above 0, such as 10s or 1m")
    return value
