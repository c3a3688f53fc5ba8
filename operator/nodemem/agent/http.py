"""HTTP/1.1 over TLS, as much of it as an API server needs: one kept connection, bodies by length or in chunks.

Not http.client: with email and urllib, which it imports, that is 1.3 MB on every node.
"""

import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import BinaryIO, cast

_LINE_BYTES = 65536
_MAX_HEADERS = 200


class ProtocolError(OSError):
    """The peer closed too early, or what it sent is no HTTP."""


class Response:
    """``headers`` by lower-case name. The body has to be read to its end before the connection can be used again."""

    def __init__(self, stream: BinaryIO) -> None:
        """Raises OSError."""
        line = _line(stream)
        if not line:
            raise ConnectionResetError("closed by the server")
        words = line.decode("latin-1").split(None, 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
            raise ProtocolError(f"not an HTTP answer: {line[:80]!r}")
        self.status = int(words[1])
        self.headers: dict[str, str] = {}
        while header := _line(stream):
            name, colon, value = header.decode("latin-1").partition(":")
            if not colon or len(self.headers) >= _MAX_HEADERS:
                raise ProtocolError(f"not an HTTP header: {header[:80]!r}")
            self.headers[name.strip().lower()] = value.strip()
        self._stream = stream

    def read(self) -> bytes:
        return b"".join(self.parts())

    def lines(self) -> Iterator[bytes]:
        """Lines of the body as they come."""
        rest = b""
        for part in self.parts():
            *whole, rest = (rest + part).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def parts(self) -> Iterator[bytes]:
        """The body as it comes: one part, or the chunks of a stream. Raises OSError when it ends too early."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := self._chunk_size():
                yield self._exactly(size)
                if _line(self._stream):
                    raise ProtocolError("a chunk that doesn't end")
            while _line(self._stream):
                pass  # trailers
        elif (length := self.headers.get("content-length")) is not None:
            if not length.isdecimal():
                raise ProtocolError(f"Content-Length: {length[:80]!r}")
            yield self._exactly(int(length))
        elif self.status != 204:
            self.headers["connection"] = "close"
            yield self._stream.read()

    def _chunk_size(self) -> int:
        line = _line(self._stream).partition(b";")[0].strip()
        try:
            return int(line, 16)
        except ValueError as error:
            raise ProtocolError("the stream was cut off" if not line else f"not a chunk: {line[:80]!r}") from error

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise ProtocolError(f"{size - len(data)} bytes missing: the connection was closed")
        return data


class Connection:
    """Connects at once. Everything raises OSError; after one only ``close`` is useful."""

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext, *, connect_seconds: float, answer_seconds: float
    ) -> None:
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # As bytes, which typeshed doesn't know of: for a str the codec "idna" is imported, 0.4 MB with its tables.
        name = host.encode("ascii" if host.isascii() else "idna")
        plain = socket.create_connection((name, port), connect_seconds)  # type: ignore[arg-type]
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
        self._stream = cast(BinaryIO, self._socket.makefile("rb"))
        self.set_timeout(answer_seconds)

    def set_timeout(self, seconds: float) -> None:
        """The longest silence."""
        self._socket.settimeout(seconds)

    def request(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
        while (response := Response(self._stream)).status // 100 == 1:
            pass
        return response

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def _line(stream: BinaryIO) -> bytes:
    """Without its end; empty at an empty line and at the end of the stream."""
    line = stream.readline(_LINE_BYTES)
    if len(line) >= _LINE_BYTES:
        raise ProtocolError("a line that doesn't end")
    return line.rstrip(b"\r\n")


def quoted(text: str) -> str:
    """For a path or a query."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-._~") else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode())
