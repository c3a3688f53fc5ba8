"""The tests of the pages can fail: what differs is told apart, and what may differ is not."""

from pathlib import Path

import pytest

from docs.pages import Block, anchors, blocks, commands, matches
from docs.shell import Shell


@pytest.mark.parametrize(
    ("prints", "printed", "exact", "same"),
    [
        ("16.1 GiB of Shmem (25 % of memory)", "9.0 MiB of Shmem (0.1 % of memory)", False, True),
        ("16.1 GiB of Shmem", "9.0 MiB of Slab", False, False),
        ("full in 4 h", "full in 3 h 25 min", False, True),
        ("/run 2Gi/16Gi", "/run 300Mi/1.5Gi", False, True),
        ("/run  2Gi\n/tmp 1Gi", "/run 2Gi /tmp     1Gi\n", True, True),
        ("/run 2Gi", "/run 3Gi", True, False),
        ("a ... c", "a b c", False, True),
        ("a\n...\nc", "a\nc", False, True),
        ("a ... c", "a b d", False, False),
        ("a", "a b", False, False),
        ("cap-run", "cap-runs", False, False),
        ("█▏ x", "███ x", False, True),
        ("n1", "n2", False, False),
    ],
)
def test_words_are_compared_and_numbers_only_where_it_says_so(
    prints: str, printed: str, exact: bool, same: bool
) -> None:
    assert matches(prints, printed, exact=exact) == same


def test_a_block_is_commands_and_what_they_print() -> None:
    block = Block("p", 10, "console", (), "$ one \\\n    two\n$ three\nout\n\nmore\n$ four\n")
    found = [(each.text, each.prints, each.line) for each in commands(block)]
    assert found == [("one \\\n    two", "", 10), ("three", "out\n\nmore", 12), ("four", "", 16)]


def test_info_strings_are_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '# A `b` (c): d\n\n# A b c d\n\n```console untested="no helm here" exact\n$ x\n```\n\n'
        "```yaml file=f.yaml\ny\n```\n"
    )
    first, second = blocks(page)
    assert (first.value("untested"), first.exact, first.line) == ("no helm here", True, 6)
    assert (second.value("file"), second.body) == ("f.yaml", "y\n")
    assert anchors(page) == {"a-b-c-d", "a-b-c-d-1"}


def test_the_shell_keeps_variables_and_tells_exit_codes(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"PATH": "/usr/bin:/bin"})
    try:
        assert shell.run("word=kept", 10) == (0, "")
        assert shell.run('echo "$word"; pwd', 10) == (0, f"kept\n{tmp_path}\n")
        assert shell.run("echo no >&2; false", 10) == (1, "no\n")
        with pytest.raises(TimeoutError):
            shell.run("sleep 60", 0.5)
    finally:
        shell.close()
