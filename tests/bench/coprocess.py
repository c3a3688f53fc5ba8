"""A program that measures itself, and is told when."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


class Coprocess:
    """A measured program: a line to its stdin makes it do one pass, a line from its stdout is the answer."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str = "") -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"bench: {self._process.args!r} ended without an answer")
        return answer

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


@contextmanager
def coprocess(*command: str) -> Iterator[Coprocess]:
    program = Coprocess(*command)
    try:
        yield program
    finally:
        program.close()
