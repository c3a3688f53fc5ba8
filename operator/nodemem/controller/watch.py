"""kopf's part: what is watched, with which settings, and as whom.

Only ``on.event`` handlers: any other kind makes kopf write annotations or finalizers to what it watches, once per
report at the start or at every heartbeat. Registry and settings are handed over; no module-level state.
"""

import logging
from typing import Any, cast

import kopf

from nodemem.api.resources import GROUP, VERSION
from nodemem.controller.client import Api
from nodemem.controller.reconcile import Reconciler
from nodemem.controller.records import Kind

_log = logging.getLogger(__name__)

_WATCHED: dict[Kind, tuple[str, str, str]] = {
    "reports": (GROUP, VERSION, "memoryreports"),
    "oom_policies": (GROUP, VERSION, "oompolicies"),
    "tmpfs_policies": (GROUP, VERSION, "tmpfspolicies"),
    "nodes": ("", "v1", "nodes"),
}


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf copies every object to see what a user changed; nobody here asks. Half of the CPU of an event."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        pass


def settings() -> kopf.OperatorSettings:
    chosen = kopf.OperatorSettings()
    # A worker per object waits this long for more events of it; with the default 5 s, 5,000 reports keep 5,000 workers
    # and their last bodies: 450 MB instead of 100.
    chosen.queueing.idle_timeout = 0.1
    # A worker limit makes the others wait for idle workers: 50 of them did 10 objects a second.
    chosen.queueing.worker_limit = None
    # One chunk in memory at a time, not 5,000 reports at once.
    chosen.watching.chunk_size = 500
    # The server ends a watch before a proxy or load balancer does at 300 s.
    chosen.watching.server_timeout = 290
    # The server sends bookmarks every 60 s: longer silence is a dead connection.
    chosen.watching.inactivity_timeout = 70
    # A stream that is cut before its first bookmark would never send the rest.
    chosen.watching.initial_streaming = False
    # Retries at least every 5 s, for 50 s: then this process ends, and the standby takes over.
    chosen.networking.error_backoffs = (1, 1, 2, 3, *[5] * 9)
    # The same proxy variables as the official client's.
    chosen.networking.trust_env = True
    chosen.persistence.diffbase_storage = _NoDiffBase()
    # Never written with on.event; should a later change cause it, at least it is our name that is found.
    chosen.persistence.finalizer = f"{GROUP}/controller"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"controller.{GROUP}")
    # Log lines do not become Events: those have their own, rare ones.
    chosen.posting.enabled = False
    # Peering would pause both replicas at equal priority; the Lease decides who writes.
    chosen.peering.standalone = True
    # The definitions are there before the controller: no watching of CRDs and namespaces, and no rights for it.
    chosen.scanning.disabled = True
    return chosen


def registry(api: Api, reconciler: Reconciler) -> kopf.OperatorRegistry:
    made = kopf.OperatorRegistry()

    # Called again after a 401: the token on disk may be a new one.
    async def login(**_unused: Any) -> kopf.ConnectionInfo:
        found = await api.configuration()
        header = await found.get_api_key_with_prefix("BearerToken", alias="authorization")
        scheme, _, token = (header or "").rpartition(" ")
        return kopf.ConnectionInfo(
            server=found.host,
            ca_path=found.ssl_ca_cert,
            insecure=not found.verify_ssl,
            scheme=scheme or None,
            token=token or None,
            certificate_path=found.cert_file,
            private_key_path=found.key_file,
            proxy_url=found.proxy,
            trust_env=True,
        )

    kopf.on.login(registry=made, id="login")(login)
    for kind, resource in _WATCHED.items():
        _watch(made, kind, resource, reconciler)
    return made


def _watch(made: kopf.OperatorRegistry, kind: Kind, resource: tuple[str, str, str], reconciler: Reconciler) -> None:
    async def saw(event: kopf.RawEvent, **_: Any) -> None:
        reconciler.saw(kind, event["type"], event["object"])

    kopf.on.event(*resource, registry=made, id=f"saw-{kind}")(saw)


async def operate(api: Api, reconciler: Reconciler, ready: Any) -> None:
    """Watch until cancelled; ends by itself, with or without an exception, when kopf gives up."""
    await kopf.operator(
        registry=registry(api, reconciler),
        settings=settings(),
        clusterwide=True,
        standalone=True,
        ready_flag=ready,
        # For peering, which is off. Left to itself kopf asks for the name of the user, and 65532 has none in the image.
        identity=cast(Any, "nodemem-controller"),
    )
