"""Claims about sizes and remount options that need no kernel. The real resizing is in tests/kernel."""

import math
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nodemem.kernel import syscalls
from nodemem.kernel.capture import ReplayHost
from nodemem.kernel.host import Host
from nodemem.kernel.mounts import MountPoint, Superblock
from nodemem.kernel.resize import Reason, Refused, _split, remount_flags, resize
from nodemem.node.owners import TmpfsOwner
from nodemem.node.protected import why_protected
from nodemem.node.units import parse_size, timestamp

GIB = 1 << 30


def superblock(**changes: Any) -> Superblock:
    values: dict[str, Any] = {
        "device": "0:39",
        "fstype": "tmpfs",
        "source": "tmpfs",
        "options": "rw,size=16384k",
        "size_bytes": 16 << 20,
        "used_bytes": 9 << 20,
        "inodes": None,
        "inodes_used": None,
        "unlimited": False,
        "mounts": [MountPoint(1010, "/run", "/", 2, "rw", False)],
        "access_pid": 1,
        "access_path": "/proc/1/root/run",
        "why_unknown": None,
        "measured_at": 0.0,
    }
    return Superblock(**{**values, **changes})


# --- parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("2147483648", 2 * GIB),
        ("2Gi", 2 * GIB),
        ("512Mi", GIB // 2),
        ("1.5G", 1_500_000_000),
        ("1.5Gi", 3 * GIB // 2),
        ("1e3", 1000),
        ("1E3", 1000),
        ("12e-1", 2),  # rounded up, as Kubernetes does
        ("1E", 10**18),
        ("1Ei", 1 << 60),
        ("100k", 100_000),
        ("+1Ki", 1024),
        (".5Mi", 524288),
        ("5.Mi", 5 << 20),
        ("0.1Gi", 107374183),
        ("128974848000m", 128974848),
        ("3000000u", 3),
        ("-0", 0),
        ("0e999999999999", 0),
        ("1e-99999", 1),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_quantity_is_read_as_kubernetes_reads_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write one such as 512Mi, 2Gi, 1.5G or 10%"),
        ("2 Gi", "is not a size"),
        ("2Gi ", "is not a size"),
        ("Gi", "is not a size"),
        (".", "is not a size"),
        ("1,5Gi", "is not a size"),
        ("0x10", "is not a size"),
        ("٣Gi", "is not a size"),
        ("1e", "is not a size"),
        ("1_000", "is not a size"),
        ("inf", "is not a size"),
        ("1Gi\n", "is not a size"),
        ("9" * 200, "is not a size"),
        ("2gb", "write 2Gi (powers of 1024) or 2G (powers of 1000)"),
        ("2g", "write 2Gi (powers of 1024) or 2G (powers of 1000)"),
        ("64KB", "write 64Ki (powers of 1024) or 64k (powers of 1000)"),
        ("3GiB", "write 3Gi (powers of 1024) or 3G (powers of 1000)"),
        ("3Zi", "write one such as 512Mi"),
        ("-1Gi", "is negative"),
        ("-10%", "is negative"),
        ("100m", "m means thousandths of a byte; write 100Mi for mebibytes"),
        ("1e400", "is too large"),
        ("8Ei", "is too large"),
        ("10%", "a percentage has no meaning here"),
        ("10%%", "is not a size"),
        ("10Mi%", "is not a size"),
    ],
)
def test_what_is_no_size_is_refused_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"size|large|byte|negative|percentage") as caught:
        parse_size(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "whole", "size"),
    [("10%", 1000, 100), ("12.5%", 1000, 125), ("33%", 100, 33), ("0.1%", 999, 0), ("150%", 10, 15)],
)
def test_percentage_is_of_the_whole_and_rounded_down(text: str, whole: int, size: int) -> None:
    assert parse_size(text, whole_bytes=whole) == size


_POWERS = {"k": (10, 3), "M": (10, 6), "G": (10, 9), "T": (10, 12), "P": (10, 15), "E": (10, 18)}
_FACTORS = {"": 1, **{suffix: base**power for suffix, (base, power) in _POWERS.items()}}
_FACTORS |= {f"{letter}i": 1 << (10 * (at + 1)) for at, letter in enumerate("KMGTPE")}


@given(
    st.integers(0, 10**21),
    st.integers(0, 20),
    st.sampled_from([*_FACTORS, *(f"e{power}" for power in range(-20, 21)), *(f"E+{power}" for power in range(5))]),
)
@example(123456789012345678901, 20, "Gi")
def test_any_quantity_is_exact(digits: int, places: int, suffix: str) -> None:
    """Against fractions: no float comes into it, whatever the number of decimals."""
    number = str(digits).rjust(places + 1, "0")
    text = f"{number[: len(number) - places]}.{number[len(number) - places :]}" if places else number
    factor = _FACTORS[suffix] if suffix in _FACTORS else Fraction(10) ** int(suffix[1:])
    expected = math.ceil(Fraction(digits, 10**places) * factor)
    if expected < 1 << 63:
        assert parse_size(f"{text}{suffix}") == expected
    else:
        with pytest.raises(ValueError, match="too large"):
            parse_size(f"{text}{suffix}")


@given(st.integers(0, 100_000), st.integers(0, 1 << 50))
def test_any_percentage_is_exact(thousandths: int, whole: int) -> None:
    text = f"{thousandths // 1000}.{thousandths % 1000:03}%"
    assert parse_size(text, whole_bytes=whole) == thousandths * whole // 100_000


@given(
    st.text(max_size=80) | st.from_regex(r"[-+]?[0-9.]{0,5}[eE]?[-+]?[0-9]{0,12}[numkKMGTPEi%]{0,3}", fullmatch=True)
)
def test_any_text_is_a_size_or_a_sentence(text: str) -> None:
    try:
        size = parse_size(text, whole_bytes=GIB)
    except ValueError as error:
        assert "write" in str(error) or "too large" in str(error)  # noqa: PT017
    else:
        assert 0 <= size < 1 << 63


# --- what a remount carries


def test_commas_inside_values_do_not_split_them() -> None:
    """mpol= has lists of nodes, and SELinux's context= is quoted."""
    options = 'rw,context="system_u:object_r:container_file_t:s0:c1,c22",size=4k,mpol=bind:0,2-3,5,huge=always'
    assert _split(options) == [
        "rw",
        'context="system_u:object_r:container_file_t:s0:c1,c22"',
        "size=4k",
        "mpol=bind:0,2-3,5",
        "huge=always",
    ]


@pytest.mark.parametrize(
    ("options", "super_options", "flags"),
    [
        ("rw,relatime", "rw,size=4k", syscalls.MS_RELATIME),
        ("rw", "rw", syscalls.MS_STRICTATIME),
        ("ro,nosuid,noatime", "rw", syscalls.MS_NOSUID | syscalls.MS_NOATIME),
        ("rw,noexec,nodiratime", "ro", syscalls.MS_NOEXEC | 0x800 | syscalls.MS_STRICTATIME | syscalls.MS_RDONLY),
        ("rw,relatime,idmapped", "rw,sync,lazytime", 0x10 | syscalls.MS_LAZYTIME | syscalls.MS_RELATIME),
    ],
)
def test_read_only_is_taken_from_the_filesystem_and_the_rest_from_the_mount(
    options: str, super_options: str, flags: int
) -> None:
    assert remount_flags(options, super_options) == flags


# --- what is refused without a look at the kernel


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fstype": "devtmpfs"}, Reason.DEVTMPFS),
        ({"fstype": "rootfs"}, Reason.ROOTFS),
        ({"fstype": "ramfs"}, Reason.NOT_TMPFS),
        ({"mounts": [MountPoint(1, "/sys/fs/cgroup", "/", 2, "ro", False)], "used_bytes": 0}, Reason.CGROUP_ROOT),
        ({"mounts": [MountPoint(77, "/tmp", "/", 2, "ro", False)]}, Reason.OWN_NAMESPACE),
        ({}, Reason.CAPTURE),
    ],
)
def test_refusal_names_the_place_and_a_reason_for_programs(changes: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        resize(ReplayHost({}), superblock(**changes), size_bytes=GIB, protect_namespace=77)
    assert caught.value.reason is reason
    assert "(0:39)" in str(caught.value)


@pytest.mark.parametrize(
    "wish", [{}, {"size_bytes": 1, "headroom_percent": -1}, {"inodes": 1, "headroom_percent": math.nan}]
)
def test_caller_is_told_of_its_own_mistakes(wish: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"neither|headroom_percent"):
        resize(Host(), superblock(), **wish)


@pytest.mark.parametrize(
    ("kind", "plugin", "what"),
    [
        ("Secret", "secret", "the secret creds of pod u1"),
        ("Projected", "projected", "the projected volume creds of pod u1"),
        ("DownwardAPI", "downward-api", "the downward API volume creds of pod u1"),
        ("Other", "csi", "the csi volume creds of pod u1"),
    ],
)
def test_volumes_that_the_kubelet_fills_are_protected(kind: Any, plugin: str, what: str) -> None:
    said = why_protected(TmpfsOwner(kind, "/v", "u1", "creds", plugin))
    assert said is not None
    assert what in said


@pytest.mark.parametrize(
    "owner",
    [None, TmpfsOwner("EmptyDir", "/v", "u1", "cache", "empty-dir"), TmpfsOwner("Host", "/run"), TmpfsOwner("Other")],
)
def test_all_other_tmpfs_are_not(owner: TmpfsOwner | None) -> None:
    assert why_protected(owner) is None


# --- timestamps


@given(st.integers(-(1 << 36), (1 << 38)))
@example(-62135596800)
@example(253402300799)
@example(253402300800)
def test_a_timestamp_is_what_datetime_says(seconds: int) -> None:
    try:
        expected = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")
    except (ValueError, OverflowError):
        with pytest.raises((ValueError, OverflowError)):
            timestamp(seconds)
    else:
        assert timestamp(seconds) == expected
