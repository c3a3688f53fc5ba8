"""The dashboards: ``fleet`` for all nodes, ``node`` for one. tests/chartlab.py writes them into the chart."""

import json
from typing import Any

from grafana import Dashboard

TO_NODE = "/d/nodemem-node/nodemem-node?var-datasource=${datasource}&var-node=${__data.fields.node}"
HIDDEN = "nodemem_memory_hidden_bytes / nodemem_memory_size_bytes"
COLORS = {"dark-green": None, "yellow": 0.15, "orange": 0.3, "red": 0.5}
EXPOSED = "max by (namespace, pod, {}, severity, reasons)"


def fleet() -> dict[str, Any]:
    board = Dashboard(
        "nodemem-fleet",
        "nodemem / Fleet",
        "Where the memory of the nodes went, and in which pods the kernel would kill the wrong process.",
        node_link=TO_NODE,
    )
    board.row("", 4)
    board.stat("Nodes measured", "count(nodemem_memory_size_bytes)", "Nodes whose agent is scraped.")
    board.stat("Silent nodes", "max(nodemem_controller_stale_reports)", "Nodes with an old report.", bad=1)
    board.stat(
        "Exposed pods",
        'sum(nodemem_controller_exposures{severity=~"High|Imminent"})',
        "Pods in which the kernel would kill the wrong process.",
        bad=1,
    )
    board.stat(
        "Wrong kills, last day",
        'sum(increase(nodemem_oom_kills_total{verdict="wrong"}[1d]))',
        "OOM kills of a process whose death did not help.",
        bad=1,
    )
    board.stat(
        "Limits in trouble",
        'sum(nodemem_tmpfs_limits{state=~"Failed|Contested"})',
        "Sizes that could not be set, or that something else changes back.",
        bad=1,
    )
    board.stat(
        "In tmpfs", 'sum(nodemem_shmem_source_bytes{source="tmpfs"})', "Of the memory of all nodes.", unit="bytes"
    )

    board.row("Memory that is in no process", 10)
    board.heat(
        "Hidden memory, share of the node: the 40 nodes with most",
        f"topk(40, {HIDDEN})",
        "{{node}}",
        "In use, but in no process's RSS: unmapped shared memory, kernel memory, page tables, huge pages.",
        COLORS,
    )
    most = f"and on (node) topk(20, {HIDDEN})"
    board.table(
        "Nodes with most hidden memory",
        (f"max by (node) (topk(20, {HIDDEN}))", "share"),
        (f"max by (node) (nodemem_memory_hidden_bytes {most})", "hidden"),
        (f"max by (node) (nodemem_shmem_size_bytes {most})", "Shmem"),
        (f"max by (node) (deriv(nodemem_shmem_size_bytes[1h]) * 3600 {most})", "Shmem per hour"),
        (f"max by (node) (nodemem_memory_available_bytes {most})", "available"),
        units={"share": "percentunit"},
        sort="share",
    )

    board.row("tmpfs", 10)
    used = "topk(20, nodemem_tmpfs_used_bytes)"
    board.table(
        "Largest tmpfs",
        (_tmpfs(used), "used"),
        (_tmpfs(f"nodemem_tmpfs_size_bytes and on (node, device) {used}"), "size"),
        (_tmpfs(f"deriv(nodemem_tmpfs_used_bytes[1h]) * 3600 and on (node, device) {used}"), "per hour"),
        sort="used",
    )
    board.series("Nodes with most Shmem", ("topk(10, nodemem_shmem_size_bytes)", "{{node}}"), unit="bytes")

    board.row("Who would die", 8)
    board.table(
        "Exposed pods",
        (f"{EXPOSED.format('node')} (nodemem_controller_pod_exposed)", "exposed"),
        unit="short",
        hide=("exposed",),
    )
    kills = "sum by (verdict) (increase(nodemem_oom_kills_total[$__rate_interval]))"
    board.series("OOM kills", (kills, "{{verdict}}"), bars=True)

    board.row("Limits of TmpfsPolicies", 8)
    board.series("Limits by state", ("sum by (state) (nodemem_tmpfs_limits)", "{{state}}"), stacked=True)
    board.table(
        "Policies: nodes by state",
        ("max by (policy, state) (nodemem_controller_tmpfspolicy_nodes)", "nodes"),
        unit="short",
        sort="nodes",
    )
    trouble = 'nodemem_tmpfs_limit_state{state=~"Failed|Contested|Deferred"}'
    board.table(
        "Limits in trouble",
        (f"max by (node, mount_point, policy, state, reason) ({trouble})", "limit"),
        unit="short",
        hide=("limit",),
    )

    board.row("nodemem itself", 7)
    resident = 'process_resident_memory_bytes and on (instance) nodemem_build_info{component="agent"}'
    board.series("Memory of the agents", (f"max({resident})", "largest"), (f"avg({resident})", "mean"), unit="bytes")
    seconds, count = (
        f'rate(nodemem_agent_scan_seconds_{each}{{scan="full"}}[$__rate_interval])' for each in ("sum", "count")
    )
    board.series("A full scan takes", (f"max({seconds} / {count})", "slowest node"), unit="s")
    board.series(
        "Writes to the API server, per second",
        ("sum(rate(nodemem_agent_report_writes_total[$__rate_interval]))", "agents"),
        ("sum(rate(nodemem_controller_writes_total[$__rate_interval]))", "controller"),
        ("sum(nodemem_controller_queue_depth)", "waiting in the controller"),
    )
    return board.plain()


def node() -> dict[str, Any]:
    board = Dashboard(
        "nodemem-node",
        "nodemem / Node",
        "Where the memory of one node went, its tmpfs, and its containers.",
        node_link=TO_NODE,
    )
    board.variable("node", "Node", "label_values(nodemem_memory_size_bytes, node)")
    of = '{node="$node"}'
    available, shmem = f"nodemem_memory_available_bytes{of}", f"nodemem_shmem_size_bytes{of}"
    board.row("", 4)
    board.stat("Memory", f"nodemem_memory_size_bytes{of}", "MemTotal.", unit="bytes")
    board.stat("Available", available, "What can be had without swapping.", unit="bytes")
    board.stat(
        "Hidden",
        f"nodemem_memory_hidden_bytes{of} / nodemem_memory_size_bytes{of}",
        "Share of memory that is in use and in no process.",
        unit="percentunit",
        bad=0.3,
    )
    board.stat("Shmem", shmem, "Files in tmpfs, and shared memory.", unit="bytes")
    board.stat("Shmem per hour", f"deriv({shmem}[1h]) * 3600", "Growth, of the last hour.", unit="bytes")
    board.stat(
        "Nothing left in",
        f"{available} / (-deriv({available}[1h]) > 0)",
        "At the pace of the last hour; empty where available memory does not shrink.",
        unit="s",
    )

    board.row("Where the memory is", 10)
    parts, sources = f"nodemem_memory_part_bytes{of}", f"nodemem_shmem_source_bytes{of}"
    board.series("Parts of memory: they add up to all of it", (parts, "{{part}}"), unit="bytes", stacked=True)
    board.series("Shmem by source", (sources, "{{source}}"), unit="bytes", stacked=True)

    board.row("tmpfs", 10)
    used, size = f"nodemem_tmpfs_used_bytes{of}", f"nodemem_tmpfs_size_bytes{of}"
    growth = f"deriv({used}[1h])"
    board.table(
        "tmpfs of this node",
        (_tmpfs(used), "used"),
        (_tmpfs(size), "size"),
        (_tmpfs(f"{used} / {size}"), "full"),
        (_tmpfs(f"{growth} * 3600"), "per hour"),
        (_tmpfs(f"({size} - {used}) / ({growth} > 0)"), "full in"),
        units={"full": "percentunit", "full in": "s"},
        sort="used",
        hide=("node",),
    )
    board.series(
        "The largest, and all that have no series",
        (f"topk(10, {used})", "{{pod}} {{volume}} {{mount_point}}"),
        (f"nodemem_tmpfs_omitted_used_bytes{of}", "all others"),
        unit="bytes",
        stacked=True,
    )

    board.row("Limits of TmpfsPolicies", 6)
    states = f"max by (mount_point, policy, state, reason) (nodemem_tmpfs_limit_state{of})"
    board.table("Limits", (states, "limit"), unit="short", hide=("limit",))
    asked = f"max by (mount_point, policy) (nodemem_tmpfs_limit_requested_bytes{of})"
    board.table("Sizes asked for", (asked, "asked for"))

    board.row("Containers", 10)
    by = "max by (namespace, pod, container, id)"
    usage = f"nodemem_container_usage_bytes{of}"
    board.table(
        "Containers",
        (f"{by} (nodemem_container_shmem_bytes{of})", "Shmem"),
        (f"{by} ({usage})", "used"),
        (f"{by} (nodemem_container_limit_bytes{of})", "limit"),
        (f'{by} (nodemem_container_oom_score_adj{{node="$node",bound="max"}})', "oom_score_adj"),
        units={"oom_score_adj": "short"},
        sort="used",
    )
    board.series(
        "Those that use most, and all that have no series",
        (f"topk(10, {usage})", "{{namespace}}/{{pod}} {{container}}"),
        (f"nodemem_containers_omitted_usage_bytes{of}", "all others"),
        unit="bytes",
        stacked=True,
    )

    board.row("Who would die", 8)
    board.table(
        "Containers in which the kernel would kill the wrong process",
        (f"{EXPOSED.format('container')} (nodemem_container_exposed{of})", "exposed"),
        unit="short",
        hide=("exposed",),
    )
    kills = f"sum by (verdict) (increase(nodemem_oom_kills_total{of}[$__rate_interval]))"
    board.series("OOM kills", (kills, "{{verdict}}"), bars=True)

    board.row("The kernel and the agent", 6)
    kernel = f"max by (release, oom_generation, cgroup) (nodemem_kernel_info{of})"
    board.table("Kernel", (kernel, "kernel"), unit="short", hide=("kernel",))
    board.series("The agent's memory", (f"process_resident_memory_bytes{of}", "resident"), unit="bytes")
    board.series(
        "Age of what is known",
        (f"time() - nodemem_agent_last_scan_timestamp_seconds{of}", "scan"),
        (f"time() - nodemem_agent_report_written_timestamp_seconds{of}", "report"),
        unit="s",
    )
    return board.plain()


def files() -> dict[str, str]:
    return {f"{name}.json": json.dumps(made(), indent=1) + "\n" for name, made in (("fleet", fleet), ("node", node))}


def _tmpfs(expression: str) -> str:
    """With the labels of a table of tmpfs. What belongs to no pod has no namespace but that of the scrape."""
    of_pod = f'label_replace({expression}, "namespace", "", "pod", "")'
    return f"max by (node, mount_point, namespace, pod, volume) ({of_pod})"
