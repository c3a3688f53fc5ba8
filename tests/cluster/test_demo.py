"""What `make demo` prints is true: the installation's own rights suffice, and kubectl shows this machine's figures."""

import os
import re
import subprocess
import sys
from pathlib import Path

from cluster.demo import LEAK


def test_the_demo_shows_the_leak_and_the_exposure_of_real_processes() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cluster.demo"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    out = result.stdout
    with open("/proc/meminfo", "rb") as stream:
        total_bytes = int(stream.readline().split()[1]) * 1024
    report = next(line for line in out.splitlines() if line.startswith(os.uname().nodename.lower()))
    assert f"{total_bytes / 2**30:.1f}Gi".replace(".0Gi", "Gi") in report
    assert os.uname().release in report
    leak = next(line for line in out.splitlines() if f"\t{LEAK}\t" in line)
    assert "\tcart\t" in leak
    exposure = next(line for line in out.splitlines() if re.match(r"shop +cart ", line))
    assert re.search(r" High +SkewedAdj +app +\d+Mi/256Mi ", exposure)
    assert "oom_score_adj 900 against 0" in out
