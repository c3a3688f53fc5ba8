"""Prometheus' own programs as judges: promtool on metrics and rules, the server itself on scrapes and queries."""

import json
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import debian

PAGE = Path(__file__).parents[1] / "docs" / "monitoring.md"

_SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)')
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "info": ("_info",), "summary": ("_count", "_sum")}


def promtool(*words: str, data: bytes | None = None, cwd: Path | None = None) -> str:
    """What it says. Raises AssertionError with that when it finds fault."""
    program = debian.ensure("promtool", "prometheus")
    done = subprocess.run([program, *words], input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd)
    said = done.stdout.decode()
    assert done.returncode == 0, f"promtool {' '.join(words)}: {said}"
    return said


def parsed(text: bytes) -> dict[str, float]:
    """Series -> value, of OpenMetrics 1.0. Every line is checked: metadata before samples, suffixes by type, no family
    or series twice."""
    lines = text.decode().split("\n")
    assert lines[-2:] == ["# EOF", ""]
    series: dict[str, float] = {}
    families: dict[str, str] = {}
    family = ""
    for line in lines[:-2]:
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family not in families
            families[family] = kind
        elif line.startswith("# UNIT "):
            assert line.split(" ")[2] == family
            assert family.endswith(f"_{line.split(' ')[3]}")
        elif line.startswith("# HELP "):
            assert line.split(" ")[2] == family
        else:
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] in [f"{family}{suffix}" for suffix in _SUFFIXES[families[family]]], line
            name = line.rpartition(" ")[0]
            assert name not in series
            series[name] = float(match[3])
    return series


def families(text: bytes) -> dict[str, set[str]]:
    """Metric name -> names of its labels, of either format. A family without samples has no labels here."""
    found: dict[str, set[str]] = {}
    kinds = {"counter": ["_total"], "info": ["_info"], "summary": ["_count", "_sum"]}
    for line in text.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            for suffix in kinds.get(kind, [""]):
                found.setdefault(name if name.endswith(suffix) else name + suffix, set())
        elif not line.startswith("#"):
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            labels = re.findall(r'([a-z_]+)="(?:[^"\\\n]|\\["\\n])*"', match[2] or "")
            found.setdefault(match[1], set()).update(labels)
    return found


def documented_scrapes(targets: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The scrape configuration of docs/monitoring.md with these targets for each job (none: nothing is scraped).

    Debian builds Prometheus without the discovery of Kubernetes' pods; what that would find, a target's labels say.
    """
    block = re.search(r"```yaml\n(scrape_configs:.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    jobs: list[dict[str, Any]] = yaml.safe_load(block[1])["scrape_configs"]
    for job in jobs:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["nodemem-system"]}}]
        job["static_configs"] = targets.get(job["job_name"], [])
    return jobs


class Prometheus:
    """A server on loopback that scrapes and evaluates ``rules`` each second; all it keeps is in ``directory``."""

    def __init__(self, directory: Path, scrapes: list[dict[str, Any]], rules: list[dict[str, Any]]) -> None:
        program = debian.ensure("prometheus", "prometheus")
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "scrape_configs": scrapes, "rule_files": ["rules.yaml"]}
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        (directory / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "nodemem", "rules": rules}]}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self._log = (directory / "log").open("w+b")
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={directory}/prometheus.yaml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={self._url.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def __enter__(self) -> "Prometheus":
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                    return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    text = self.log()
                    self.__exit__()
                    raise AssertionError(f"prometheus did not get ready:\n{text}") from None
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def ask(self, path: str, **words: str) -> Any:
        """``data`` of the answer. Raises urllib.error.HTTPError."""
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(words)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series."""
        return [(each["metric"], float(each["value"][1])) for each in self.ask("query", query=expression)["result"]]
