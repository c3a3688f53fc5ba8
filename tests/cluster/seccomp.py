"""The seccomp profile that a container runtime applies as RuntimeDefault, for the capabilities of a container."""

import json
from collections.abc import Collection
from typing import Any

from debian import ensure_file

_PROFILE = "/usr/share/containers/seccomp.json"
_ARCHITECTURES = {"amd64"}

# CRI-O's and Podman's profile lets everybody try these; containerd's and Docker's only who has the capability.
_STRICTER = {
    "mount": ("SYS_ADMIN",),
    "mount_setattr": ("SYS_ADMIN",),
    "move_mount": ("SYS_ADMIN",),
    "open_tree": ("SYS_ADMIN",),
    "fsopen": ("SYS_ADMIN",),
    "fspick": ("SYS_ADMIN",),
    "fsconfig": ("SYS_ADMIN",),
    "fsmount": ("SYS_ADMIN",),
    "umount": ("SYS_ADMIN",),
    "umount2": ("SYS_ADMIN",),
    "unshare": ("SYS_ADMIN",),
    "setns": ("SYS_ADMIN",),
    "syslog": ("SYS_ADMIN", "SYSLOG"),
}


def profile(capabilities: Collection[str]) -> dict[str, Any]:
    """``linux.seccomp`` of an OCI configuration: what both of the two profiles allow. ``capabilities``: CAP_..."""
    with open(ensure_file(_PROFILE, "golang-github-containers-common"), encoding="utf-8") as stream:
        source = json.load(stream)
    denied = [name for name, needs in _STRICTER.items() if not any(f"CAP_{each}" in capabilities for each in needs)]
    rules = []
    for rule in source["syscalls"]:
        if not _applies(rule, capabilities):
            continue
        names = [each for each in rule["names"] if each not in denied]
        if names:
            kept = {"names": names, "action": rule["action"], "args": rule["args"] or []}
            rules.append(kept | ({"errnoRet": rule["errnoRet"]} if "errnoRet" in rule else {}))
    if denied:
        rules.append({"names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": []})
    return {
        "defaultAction": source["defaultAction"],
        "defaultErrnoRet": source["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }


def _applies(rule: dict[str, Any], capabilities: Collection[str]) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if not _ARCHITECTURES & set(includes.get("arches") or _ARCHITECTURES):
        return False
    if _ARCHITECTURES & set(excludes.get("arches") or ()):
        return False
    if not set(includes.get("caps") or ()) <= set(capabilities):
        return False
    return not set(excludes.get("caps") or ()) & set(capabilities)
