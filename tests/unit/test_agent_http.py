"""Answers of a server, read from bytes."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodemem.agent.http import ProtocolError, Response, quoted


def response(data: bytes) -> Response:
    return Response(io.BytesIO(data))


def chunked(*parts: bytes) -> bytes:
    body = b"".join(b"%x;note=1\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


def test_a_body_by_length_leaves_the_next_answer_where_it_is() -> None:
    stream = io.BytesIO(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nX-A: b: c\r\n\r\ngoneHTTP/1.1 200 OK\r\n\r\n")
    first = Response(stream)
    assert (first.status, first.headers["x-a"], first.read()) == (404, "b: c", b"gone")
    assert Response(stream).status == 200


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10))
def test_chunks_are_put_together(parts: list[bytes]) -> None:
    assert response(chunked(*parts) + b"0\r\nTrailer: x\r\n\r\n").read() == b"".join(parts)


@given(st.lists(st.text("ab{}", min_size=1), min_size=1, max_size=6), st.integers(1, 7))
def test_lines_come_whole_however_they_are_cut(lines: list[str], size: int) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    assert list(response(chunked(*parts) + b"0\r\n\r\n").lines()) == [line.encode() for line in lines]


def test_a_line_is_given_before_the_stream_ends() -> None:
    lines = response(chunked(b"first\nsec")).lines()
    assert next(lines) == b"first"
    with pytest.raises(ProtocolError, match="cut off"):
        next(lines)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 two OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a" * 70000,
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"a%d: b\r\n" % number for number in range(300)),
    ],
)
def test_what_is_no_whole_answer_is_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        response(data).read()


def test_a_closed_connection_is_told_from_a_broken_answer() -> None:
    with pytest.raises(ConnectionResetError):
        response(b"")


def test_an_answer_without_length_ends_with_the_connection() -> None:
    found = response(b"HTTP/1.0 200 OK\r\n\r\nall of it")
    assert found.read() == b"all of it"
    assert found.headers["connection"] == "close"


def test_query_values_are_quoted() -> None:
    assert quoted("spec.nodeName=n1") == "spec.nodeName%3Dn1"
    assert quoted("é&/ ~") == "%C3%A9%26%2F%20~"
