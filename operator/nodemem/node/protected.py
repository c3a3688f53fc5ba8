"""Which tmpfs are never resized because of whose they are."""

from nodemem.node.owners import TmpfsOwner

_KINDS = {
    "Projected": "projected volume",
    "Secret": "secret",
    "DownwardAPI": "downward API volume",
}


def why_protected(owner: TmpfsOwner | None) -> str | None:
    """A sentence for a volume whose contents the kubelet or its plugin writes; None for all others.

    Their sizes are the kubelet's business, and a write that fails leaves a pod with stale credentials.
    """
    if owner is None:
        return None
    kind = _KINDS.get(owner.kind)
    if kind is None and owner.kind == "Other" and owner.plugin is not None:
        kind = f"{owner.plugin} volume"
    if kind is None:
        return None
    volume = f" {owner.volume}" if owner.volume else ""
    pod = f" of pod {owner.pod_uid}" if owner.pod_uid else ""
    return (
        f"{owner.path} is the {kind}{volume}{pod}, which the kubelet fills: it must never be full. Choose an emptyDir, "
        "a /dev/shm or a tmpfs of the host"
    )
