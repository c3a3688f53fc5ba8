"""The text that Prometheus scrapes, read back by the rules of OpenMetrics 1.0."""

import re
import socket
import threading
from collections.abc import Iterator

import pytest

from nodemem.agent.metrics import Counters, render
from nodemem.agent.server import HealthServer, parse_address
from unit.agent_statuses import GIB, MIB, container, exposure, status, tmpfs

_SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)')
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "info": ("_info",), "summary": ("_count", "_sum")}


def parsed(text: bytes) -> dict[str, float]:
    """Series -> value. Every line is checked: metadata before samples, suffixes by type, no family or series twice."""
    lines = text.decode().split("\n")
    assert lines[-2:] == ["# EOF", ""]
    series: dict[str, float] = {}
    families: dict[str, str] = {}
    family = ""
    for line in lines[:-2]:
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family not in families
            families[family] = kind
        elif line.startswith("# UNIT "):
            assert line.split(" ")[2] == family
            assert family.endswith(f"_{line.split(' ')[3]}")
        elif line.startswith("# HELP "):
            assert line.split(" ")[2] == family
        else:
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] in [f"{family}{suffix}" for suffix in _SUFFIXES[families[family]]], line
            name = line.rpartition(" ")[0]
            assert name not in series
            series[name] = float(match[3])
    return series


def counters() -> Counters:
    found = Counters(started_at=1.0)
    found.scans["full"] = 2
    found.scan_seconds["full"] = 0.5
    found.writes["new"] = 1
    found.kills = {"Right": 1, "Wrong": 2, "Unknown": 0}
    found.request("GET", 200)
    found.request("GET", 0)
    return found


def test_metrics_are_open_metrics_and_have_the_figures() -> None:
    found = parsed(
        render(
            status(
                tmpfs=(tmpfs(1, 5 * MIB),), containers=(container(1, 3 * MIB),), exposures=(exposure(1, "Imminent"),)
            ),
            counters(),
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


def test_before_the_first_scan_there_are_the_agent_s_own_metrics() -> None:
    found = parsed(render(None, Counters()))
    assert "nodemem_memory_size_bytes" not in found
    assert found["process_resident_memory_bytes"] > MIB


def test_unknown_is_no_series_and_not_zero() -> None:
    found = parsed(render(status(tmpfs=(tmpfs(1, None),), exposures=None), Counters()))
    assert not [name for name in found if name.startswith(("nodemem_tmpfs_used_bytes", "nodemem_exposed_containers"))]


def test_hostile_names_can_t_make_lines_or_labels() -> None:
    import dataclasses

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
        metrics=lambda: b"# EOF\n",
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


def test_metrics_have_the_content_type_that_scrapers_look_for(server: tuple[HealthServer, object]) -> None:
    answer = ask(server[0], b"GET /metrics HTTP/1.1\r\n\r\n")
    assert b"Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n" in answer
    assert answer.endswith(b"\r\n\r\n# EOF\n")
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
