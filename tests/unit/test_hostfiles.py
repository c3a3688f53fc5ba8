"""Our files in the host's tree: no symlink is followed, nobody else's file is touched, a kill leaves no half file."""

import os
from pathlib import Path

import pytest

from nodemem.kernel import hostfiles, systemd
from nodemem.kernel.host import Host
from nodemem.kernel.hostfiles import MARK, ForeignFileError, HostTree

WHERE = "/run/systemd/journald.conf.d/90-nodemem.conf"
TEXT = f"{MARK}\n[Journal]\n"
ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "run/systemd").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def tree(top: Path) -> HostTree:
    return HostTree(Host(), str(top))


def at(top: Path, path: str = WHERE) -> Path:
    return top / path[1:]


def test_a_file_is_written_with_its_directory_read_and_removed(top: Path, tree: HostTree) -> None:
    assert tree.own(WHERE) is None
    tree.write(WHERE, TEXT)
    assert at(top).read_text() == TEXT
    assert at(top).stat().st_mode & 0o777 == 0o644
    tree.write(WHERE, TEXT + "more\n")
    assert tree.own(WHERE) == TEXT + "more\n"
    tree.remove(WHERE)
    tree.remove(WHERE)
    assert list(at(top).parent.iterdir()) == []


def test_more_than_one_directory_is_not_made(tree: HostTree) -> None:
    with pytest.raises(FileNotFoundError):
        tree.write("/run/a/b/c.conf", TEXT)


@pytest.mark.parametrize("step", ["fchmod", "rename"])
def test_killed_while_it_writes_the_file_is_the_old_one(
    top: Path, tree: HostTree, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.write(WHERE, TEXT)

    class KilledError(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(hostfiles.os, step, die)
        with pytest.raises(KilledError):
            tree.write(WHERE, TEXT + "more\n")
    assert tree.own(WHERE) == TEXT
    tree.tidy(WHERE)
    assert [each.name for each in at(top).parent.iterdir()] == ["90-nodemem.conf"]


@pytest.mark.parametrize("text", ["", "[Journal]\n", f" {MARK}\n"])
def test_a_file_of_somebody_else_is_neither_written_over_nor_removed(top: Path, tree: HostTree, text: str) -> None:
    at(top).parent.mkdir()
    at(top).write_text(text)
    for act in (tree.own, tree.remove, lambda path: tree.write(path, TEXT)):
        with pytest.raises(ForeignFileError):
            act(WHERE)
    assert at(top).read_text() == text
    assert len(list(at(top).parent.iterdir())) == 1


@pytest.mark.parametrize("planted", ["run", "run/systemd", "run/systemd/journald.conf.d", WHERE[1:]])
def test_no_symlink_on_the_way_is_followed(tmp_path: Path, planted: str) -> None:
    top, other = tmp_path / "top", tmp_path / "other"
    for root in (top, other):
        at(root).parent.mkdir(parents=True)
    at(other).write_text(TEXT)
    link = top / planted
    if link.is_dir():
        link.rename(tmp_path / "aside")
    link.symlink_to(other / planted)
    tree = HostTree(Host(), str(top))
    for act in (tree.own, tree.remove, lambda path: tree.write(path, TEXT + "more\n")):
        with pytest.raises((OSError, ForeignFileError)) as raised:
            act(WHERE)
        assert isinstance(raised.value, OSError)
    assert at(other).read_text() == TEXT
    assert [each.name for each in at(other).parent.iterdir()] == ["90-nodemem.conf"]


def test_a_fifo_in_its_place_does_not_hang_it(top: Path, tree: HostTree) -> None:
    at(top).parent.mkdir()
    os.mkfifo(at(top))
    with pytest.raises(OSError, match="not a regular file"):
        tree.own(WHERE)


def test_a_note_is_there_until_it_is_done(top: Path, tree: HostTree) -> None:
    assert not tree.noted(WHERE)
    tree.note(WHERE)
    tree.note(WHERE)
    assert tree.noted(WHERE)
    assert all(name.startswith(".") and not name.endswith(".conf") for name in os.listdir(at(top).parent))
    tree.done(WHERE)
    tree.done(WHERE)
    assert not tree.noted(WHERE)


# What is looked at of the host's systemd


def test_the_volatile_journal_is_what_journald_itself_has_and_none_is_none(top: Path, tree: HostTree) -> None:
    assert systemd.journal_bytes(tree) is None
    own, namespace = top / f"run/log/journal/{ID}", top / f"run/log/journal/{ID}.other"
    for place in (own, namespace):
        place.mkdir(parents=True)
    assert systemd.journal_bytes(tree) is None
    files = ((own, "system.journal", 8), (own, "user-1@0.journal~", 4), (namespace, "system.journal", 16))
    for place, name, size in files:
        (place / name).write_bytes(os.urandom(size << 10))
    (own / "fss").write_bytes(os.urandom(4096))
    assert systemd.journal_bytes(tree) == 12 << 10


@pytest.mark.parametrize(
    ("path", "text", "counts"),
    [
        ("etc/systemd/journald.conf.d/95-late.conf", "[Journal]\nRuntimeMaxUse=1G\n", True),
        ("usr/lib/systemd/journald.conf.d/zz.conf", "[Journal]\n RuntimeMaxUse=1G\n", True),
        ("etc/systemd/journald.conf.d/90-nodemem.conf", "", True),
        ("etc/systemd/journald.conf.d/10-early.conf", "[Journal]\nRuntimeMaxUse=1G\n", False),
        ("usr/lib/systemd/journald.conf.d/90-nodemem.conf", "[Journal]\nRuntimeMaxUse=1G\n", False),
        ("etc/systemd/journald.conf.d/95-late.conf", "[Journal]\n#RuntimeMaxUse=1G\nSystemMaxUse=1G\n", False),
        ("etc/systemd/journald.conf.d/95-late.txt", "[Journal]\nRuntimeMaxUse=1G\n", False),
        ("etc/systemd/journald.conf", "[Journal]\nRuntimeMaxUse=1G\n", False),
    ],
)
def test_a_drop_in_that_counts_more_is_found(top: Path, tree: HostTree, path: str, text: str, counts: bool) -> None:
    (top / path).parent.mkdir(parents=True)
    (top / path).write_text(text)
    assert systemd.overriding(tree, WHERE, "RuntimeMaxUse") == (f"/{path}" if counts else None)


def test_old_is_what_was_neither_read_nor_written_nor_changed(top: Path, tree: HostTree) -> None:
    logs = top / "run/logs"
    (logs / "deep/deeper").mkdir(parents=True)
    for name in ("a", "deep/b", "deep/deeper/c"):
        (logs / name).write_bytes(os.urandom(4096))
    os.link(logs / "a", logs / "again")
    (logs / "link").symlink_to("/etc/passwd")
    os.utime(logs / "a", (1, 1))  # which changes it now
    changed = (logs / "a").stat().st_ctime
    assert systemd.old_files(tree, ["/run/logs"], changed - 60).files == 0
    assert systemd.old_files(tree, ["/run/logs"], changed + 60) == systemd.OldFiles(3, 3 * 4096)
    assert systemd.old_files(tree, ["/run/nothing", "/run/logs/link"], changed + 60) == systemd.OldFiles(0, 0)
    assert not systemd.old_files(tree, ["/run/logs"], changed + 60, most=3).whole


def test_wildcards_stand_for_directories_that_are_there(top: Path, tree: HostTree) -> None:
    for name in ("app-1/logs", "app-2/logs", "app-3", ".app-4/logs"):
        (top / "run" / name).mkdir(parents=True)
    (top / "run/app-5").symlink_to(top / "run/app-1")
    assert systemd.expand(tree, "/run/app-?/logs") == ["/run/app-1/logs", "/run/app-2/logs", "/run/app-3/logs"]
    assert systemd.expand(tree, "/run/*") == [f"/run/{each}" for each in ("app-1", "app-2", "app-3", "systemd")]
    assert systemd.expand(tree, "/run/nothing/here") == ["/run/nothing/here"]
