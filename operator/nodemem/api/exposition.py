"""Metrics in the text formats that Prometheus reads: OpenMetrics 1.0 for whoever asks for it, else the older one
(text/plain 0.0.4), the only one that promtool and many scrapers know."""

import os

from nodemem.api.convert import safe

OPEN_METRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABEL_LENGTH = 128
_OLD_TYPES = {"info": "gauge"}
_SUFFIXES = {"counter": "_total", "info": "_info"}


def wants_open_metrics(accept: str) -> bool:
    """By a request's Accept header: who names it gets it. Weights are not compared: Prometheus names it first, and
    nobody names what it can't read."""
    return "application/openmetrics-text" in accept.lower()


class Exposition:
    """One answer to a scrape. Samples follow the family that they belong to."""

    def __init__(self, open_metrics: bool) -> None:
        self.content_type = OPEN_METRICS_TYPE if open_metrics else TEXT_TYPE
        self._open_metrics = open_metrics
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str, unit: str | None = None) -> None:
        """``name`` as OpenMetrics has it: of a counter without ``_total``, of an info without ``_info``."""
        if self._open_metrics:
            self._lines.append(f"# TYPE {name} {kind}")
            if unit is not None:
                self._lines.append(f"# UNIT {name} {unit}")
        else:
            name += _SUFFIXES.get(kind, "")
            self._lines.append(f"# TYPE {name} {_OLD_TYPES.get(kind, kind)}")
        self._lines.append(f"# HELP {name} {text}")

    def sample(self, name: str, value: float | None, **labels: str | None) -> None:
        """Nothing for an unknown value: no series says more than a zero. Labels that are None are left out."""
        if value is None:
            return
        known = [f'{key}="{_label(text)}"' for key, text in labels.items() if text is not None]
        self._lines.append(f"{name}{{{','.join(known)}}} {value}" if known else f"{name} {value}")

    def value(self, name: str, kind: str, text: str, value: float | None, unit: str | None = None) -> None:
        """A family that is one sample without labels."""
        self.family(name, kind, text, unit)
        self.sample(name + _SUFFIXES.get(kind, ""), value)

    def done(self) -> bytes:
        end = ["# EOF"] if self._open_metrics else []
        return ("\n".join([*self._lines, *end]) + "\n").encode()


def _label(text: str) -> str:
    return safe(text)[:_LABEL_LENGTH].replace("\\", "\\\\").replace('"', '\\"')


def process(out: Exposition, started_at: float) -> None:
    """What Prometheus calls the standard metrics of a process, of this one. ``started_at``: Unix time."""
    times = os.times()
    cpu = round(times.user + times.system, 2)
    out.value("process_cpu_seconds", "counter", "CPU time of this process.", cpu, "seconds")
    resident = _resident_bytes()
    out.value("process_resident_memory_bytes", "gauge", "Resident memory of this process.", resident, "bytes")
    out.value("process_start_time_seconds", "gauge", "When this process started.", started_at, "seconds")


def _resident_bytes() -> int | None:
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
