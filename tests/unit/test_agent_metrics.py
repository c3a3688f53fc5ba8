"""The text that Prometheus scrapes, read back by the rules of OpenMetrics 1.0."""

import dataclasses
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from nodemem.agent.metrics import EXPOSURES_LISTED, LIMITS_LISTED, Counters
from nodemem.agent.metrics import render as rendered
from nodemem.agent.server import HealthServer, parse_address
from nodemem.api.exposition import Exposition
from nodemem.node.status import LimitStatus, OomMitigationStatus, ReclaimStatus, ReportStatus
from promlab import families, parsed, promtool
from unit.agent_statuses import GIB, MIB, container, exposure, status, tmpfs
from unit.metricsamples import agent_counters, full_status, limit


def render(of: ReportStatus | None, counters: Counters) -> bytes:
    return rendered(of, counters, open_metrics=True).done()


def test_metrics_are_open_metrics_and_have_the_figures() -> None:
    found = parsed(
        render(
            status(
                tmpfs=(tmpfs(1, 5 * MIB),), containers=(container(1, 3 * MIB),), exposures=(exposure(1, "Imminent"),)
            ),
            agent_counters(),
        )
    )
    assert found["nodemem_memory_size_bytes"] == 64 * GIB
    assert found['nodemem_memory_part_bytes{part="anonymous"}'] == 16 * GIB
    assert found['nodemem_exposed_containers{severity="Imminent"}'] == 1
    assert found['nodemem_exposed_containers{severity="Low"}'] == 0
    assert found['nodemem_oom_kills_total{verdict="wrong"}'] == 2
    assert found['nodemem_agent_api_requests_total{verb="GET",status="none"}'] == 1
    assert found['nodemem_agent_scan_seconds_sum{scan="full"}'] == 0.5
    of_container = {name: value for name, value in found.items() if name.startswith("nodemem_container_shmem_bytes")}
    assert list(of_container.values()) == [3 * MIB]
    assert 'pod="pod-1"' in next(iter(of_container))


def test_promtool_finds_no_fault_in_the_older_format() -> None:
    text = rendered(full_status(), agent_counters(), open_metrics=False).done()
    assert promtool("check", "metrics", data=text) == ""
    newer = families(render(full_status(), agent_counters()))
    assert families(text) == newer
    assert len(newer) > 40


def test_what_the_lists_leave_out_is_in_the_remainders() -> None:
    found = parsed(render(full_status(), agent_counters()))
    assert found["nodemem_tmpfs_omitted"] == 3
    assert found["nodemem_tmpfs_omitted_used_bytes"] == 5 * MIB
    assert found["nodemem_containers_omitted"] == 4
    assert found["nodemem_containers_omitted_shmem_bytes"] == 6 * MIB
    assert found["nodemem_containers_omitted_usage_bytes"] == 7 * MIB


def test_a_limit_in_trouble_is_named_with_its_reason_and_never_crowded_out() -> None:
    many = (*(limit(number) for number in range(200)), limit(200, "Failed", "Unlimited"), limit(201, "Contested"))
    found = parsed(render(status(limits=many), Counters()))
    states = [name for name in found if name.startswith("nodemem_tmpfs_limit_state")]
    assert len(states) == LIMITS_LISTED
    series = 'nodemem_tmpfs_limit_state{mount_point="/run/200",policy="cap",state="Failed",reason="Unlimited"}'
    assert states[0] == series
    assert 'state="Contested"' in states[1]
    assert found['nodemem_tmpfs_limits{state="InSync"}'] == 200
    assert found['nodemem_tmpfs_limit_requested_bytes{mount_point="/run/200",policy="cap"}'] == GIB


def test_exposures_are_listed_up_to_a_number_and_counted_all() -> None:
    found = parsed(render(status(exposures=tuple(exposure(each) for each in range(100))), Counters()))
    assert sum(name.startswith("nodemem_container_exposed{") for name in found) == EXPOSURES_LISTED
    assert found['nodemem_exposed_containers{severity="High"}'] == 100
    assert (
        f'nodemem_container_exposed{{namespace="load",pod="pod-7",container="application",id="{7:012x}",'
        'severity="High",reasons="ClampedBadness"}'
    ).replace(f"{7:012x}", f"{7:064x}"[:12]) in found


def test_a_mitigated_container_is_counted_as_that_and_not_as_exposed() -> None:
    exposures = (exposure(1), replace(exposure(2), mitigated=True))
    applied = OomMitigationStatus("a" * 64, "uid", "Applied", "app", -63, -997)
    answers = (applied, replace(applied, state="Pending"))
    found = parsed(render(status(exposures=exposures, oom_mitigations=answers), Counters()))
    assert found["nodemem_mitigated_containers"] == 1
    assert found['nodemem_exposed_containers{severity="High"}'] == 1


def test_before_the_first_scan_there_are_the_agent_s_own_metrics() -> None:
    found = parsed(render(None, Counters()))
    assert "nodemem_memory_size_bytes" not in found
    assert found["process_resident_memory_bytes"] > MIB


def test_unknown_is_no_series_and_not_zero() -> None:
    found = parsed(render(status(tmpfs=(tmpfs(1, None),), exposures=None), Counters()))
    assert not [name for name in found if name.startswith(("nodemem_tmpfs_used_bytes", "nodemem_exposed_containers"))]


def test_hostile_names_can_t_make_lines_or_labels() -> None:
    evil = dataclasses.replace(tmpfs(1), mount_point='/a"} 1\nfake_metric 2\\\x1b' + "x" * 500)
    text = render(status(tmpfs=(evil,)), Counters())
    found = parsed(text)
    assert "fake_metric" not in {name.partition("{")[0] for name in found}
    assert max(len(line) for line in text.decode().split("\n")) < 700


@pytest.fixture
def server() -> Iterator[tuple[HealthServer, dict[str, str | None]]]:
    state: dict[str, str | None] = {"healthy": None, "ready": "no scan yet"}
    made = HealthServer(
        ("127.0.0.1", 0),
        metrics=Exposition,
        healthy=lambda: state["healthy"],
        ready=lambda: state["ready"],
    )
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made, state
    made.shutdown()
    thread.join()
    made.server_close()


def ask(server: HealthServer, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_health_and_readiness_say_why_not(server: tuple[HealthServer, dict[str, str | None]]) -> None:
    made, state = server
    assert ask(made, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    assert ask(made, b"GET /readyz?verbose HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\nno scan yet\n")
    state |= {"healthy": "no scan for 300 s", "ready": None}
    assert ask(made, b"GET /healthz HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503 ")
    assert ask(made, b"GET /readyz HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("accept", "kind", "body"),
    [
        (
            "application/openmetrics-text;version=1.0.0,*/*;q=0.1",
            b"application/openmetrics-text; version=1.0.0",
            b"# EOF\n",
        ),
        ("text/plain;version=0.0.4", b"text/plain; version=0.0.4", b"\n"),
        (None, b"text/plain; version=0.0.4", b"\n"),
    ],
)
def test_metrics_come_in_the_format_that_is_asked_for(
    server: tuple[HealthServer, object], accept: str | None, kind: bytes, body: bytes
) -> None:
    header = b"" if accept is None else f"Host: x\r\naccept: {accept}\r\n".encode()
    answer = ask(server[0], b"GET /metrics HTTP/1.1\r\n" + header + b"\r\n")
    assert b"Content-Type: " + kind + b"; charset=utf-8\r\n" in answer
    assert answer.endswith(b"\r\n\r\n" + body)
    assert ask(server[0], b"HEAD /metrics HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 "),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 "),
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", b""),
    ],
)
def test_other_requests_are_refused(server: tuple[HealthServer, object], data: bytes, answer: bytes) -> None:
    try:
        found = ask(server[0], data)
    except ConnectionResetError:
        found = b""
    assert found.startswith(answer)
    assert bool(found) == bool(answer)


def test_slow_clients_don_t_keep_the_kubelet_out(server: tuple[HealthServer, object]) -> None:
    idle = [socket.create_connection(("127.0.0.1", server[0].port), 5) for _ in range(6)]
    try:
        assert ask(server[0], b"GET /healthz HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    finally:
        for connection in idle:
            connection.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9812", ("", 9812)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "80", "host", "::1:80", "a:b", "a:70000"])
def test_what_is_no_address_gets_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="expected ADDRESS:PORT"):
        parse_address(text)


def test_limits_and_reclaim_are_counted_by_their_states() -> None:
    limit = LimitStatus("/run", GIB, GIB, None, "Deferred")
    clean = ReclaimStatus("Journal", None, GIB, None, "Refused")
    found = parsed(render(status(limits=(limit,), reclaim=(clean,)), agent_counters()))
    assert found['nodemem_tmpfs_limits{state="Deferred"}'] == 1
    assert found['nodemem_tmpfs_limits{state="Failed"}'] == 0
    assert found['nodemem_reclaim{state="Refused"}'] == 1
    assert found['nodemem_reclaim{state="Failed"}'] == 0
