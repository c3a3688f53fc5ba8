"""Events on pods: an exposure appeared, became imminent, or is gone. Nothing else, and each seldom."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from nodemem.controller.exposures import Change

News = Literal["Appeared", "Imminent", "Gone"]

REPEAT_SECONDS = 3600.0
"""The same news of the same pod is told once in this time, however often it comes and goes."""

CONTROLLER = "nodemem.io/controller"
_REASONS: dict[News, tuple[str, str]] = {
    "Appeared": ("OomMisselectionExposed", "Warning"),
    "Imminent": ("OomMisselectionImminent", "Warning"),
    "Gone": ("OomMisselectionGone", "Normal"),
}


@dataclass(slots=True)
class Told:
    """What was told of which pod (by UID), and when (``time.monotonic``)."""

    _at: dict[tuple[str, News], float] = field(default_factory=dict)

    def again(self, pod_uid: str, news: News, now: float) -> bool:
        """Whether this was told within ``REPEAT_SECONDS``; if not, it counts as told now."""
        for key in [key for key, at in self._at.items() if now - at > REPEAT_SECONDS]:
            del self._at[key]
        return self._at.setdefault((pod_uid, news), now) != now


def event(change: Change, news: News, pod_uid: str, instance: str, wall: float) -> dict[str, Any]:
    """An events.k8s.io/v1 Event. Its name is a function of its content: sent again, it is refused as a duplicate."""
    namespace, name = change.key
    reason, kind = _REASONS[news]
    moment = datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    digest = hashlib.sha256(f"{pod_uid}/{news}/{moment}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{name[:230].rstrip('-.')}.{digest}", "namespace": namespace},
        "eventTime": moment,
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128],
        "action": "CheckOom",
        "reason": reason,
        "type": kind,
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": pod_uid},
        "note": _note(change)[:1024],
    }


def path(document: Mapping[str, Any]) -> str:
    return f"/apis/events.k8s.io/v1/namespaces/{document['metadata']['namespace']}/events"


def pod_uid(change: Change) -> str | None:
    if change.wanted is not None:
        return change.wanted.pod_uid
    return change.actual.owner_uid if change.actual is not None else None


def _note(change: Change) -> str:
    if change.wanted is None:
        return "The OOM killer would no longer take the wrong process in this pod, or it is no longer checked."
    worst = change.wanted.status.containers[0]
    return f"{worst.name}: {worst.message}" if worst.name else worst.message
