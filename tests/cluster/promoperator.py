"""The definitions of prometheus-operator, from its Go module: the judge of PodMonitors and PrometheusRules."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from cluster.binaries import find_go

MODULE = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
SUM = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="


def definitions() -> list[dict[str, Any]]:
    """PodMonitor and PrometheusRule. The module is downloaded once, into Go's own cache."""
    with tempfile.TemporaryDirectory() as nowhere:
        done = subprocess.run(
            [find_go(), "mod", "download", "-json", MODULE], cwd=nowhere, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, f"{MODULE}: {done.stdout}{done.stderr}"
    found = json.loads(done.stdout)
    assert found["Sum"] == SUM, f"{MODULE} is not what it was: {found['Sum']}"
    directory = Path(found["Dir"], "example", "prometheus-operator-crd")
    names = ("podmonitors", "prometheusrules")
    return [yaml.safe_load((directory / f"monitoring.coreos.com_{name}.yaml").read_text()) for name in names]
