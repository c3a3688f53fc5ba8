"""One bash session for a page, as a reader has one: variables, files and jobs of a command are there for the next."""

import os
import secrets
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


class Shell:
    """``inside``: words in front of bash, such as nsenter's. Everything it started ends with it."""

    def __init__(self, directory: Path, environment: Mapping[str, str], inside: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*inside, "bash", "--norc", "--noprofile"],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.run(f"cd {directory}", 30)

    def run(self, command: str, seconds: float) -> tuple[int, str]:
        """Exit code and output, both streams as they come. Raises TimeoutError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        end = f"end-{secrets.token_hex(8)}"
        self._process.stdin.write(f"{command}\nprintf '\\n%s %s\\n' {end} $?\n".encode())
        self._process.stdin.flush()
        said = b""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while f"\n{end} ".encode() not in said or not said.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"{command}: not done after {seconds:.0f} s:\n{said.decode(errors='replace')}")
                piece = os.read(self._process.stdout.fileno(), 65536)
                if not piece:
                    raise EOFError(f"{command}: the shell ended:\n{said.decode(errors='replace')}")
                said += piece
        text, _, code = said.decode(errors="replace").rpartition(f"\n{end} ")
        return int(code), text

    def close(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
