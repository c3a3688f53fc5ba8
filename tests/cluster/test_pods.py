"""The claims of pods.py, on a node of their own: a PID namespace whose first process may be looked at.

The agent finds the node's mounts and cgroups through its process 1. That of a machine for tests may be out of reach
even for root. Directly: unshare --pid --fork --mount-proc --kill-child pytest tests/cluster/pods.py
"""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CLAIMS = re.findall(r"^def (test_\w+)\(", (HERE / "pods.py").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each claim came to, its cases together; "" is well."""
    report = tmp_path_factory.mktemp("pods") / "results.xml"
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    result = subprocess.run([*command, str(HERE / "pods.py")], cwd=HERE.parents[1], capture_output=True, text=True)
    assert report.exists(), result.stdout + result.stderr
    found: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        name = str(case.get("name")).partition("[")[0]
        bad = [str(each.text) for each in case if each.tag in ("failure", "error", "skipped")]
        found[name] = "\n".join([found.get(name, ""), *bad]).strip()
    return found


@pytest.mark.parametrize("claim", CLAIMS)
def test_pods(results: dict[str, str], claim: str) -> None:
    assert claim in results
    assert results[claim] == "", results[claim]
