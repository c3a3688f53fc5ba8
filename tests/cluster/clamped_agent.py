"""``python -m cluster.clamped_agent``: the agent on this machine as if its kernel clamped scores (before 5.9).

Two answers of the kernel are replaced. oom_score reads 0, as a clamped kernel's does for small processes: the
probe looks at it. And the oom_score_adj of the processes of the container in $GUARANTEED are others than the real ones,
because lowering below 0 takes CAP_SYS_RESOURCE, which a test machine may lack: see ``shown`` and ``real``.
"""

import os
import re
import sys

from nodemem.agent import options
from nodemem.agent.changes import Cadence
from nodemem.agent.config import from_kubeconfig
from nodemem.agent.loop import Agent, Intervals
from nodemem.kernel import oomadj
from nodemem.kernel.host import Host

KUBELETS = -997


def shown(real: int) -> int:
    """0, which a process begins with, is the kubelet's; 937 is -63, 500 is -500."""
    return real - 1000 if real else KUBELETS


def real(shown: int) -> int:
    return 0 if shown == KUBELETS else shown + 1000


class ClampedHost(Host):
    def __init__(self, guaranteed: str) -> None:
        super().__init__()
        self._guaranteed = guaranteed.encode()

    def read_small(self, path: str) -> bytes:
        data = super().read_small(path)
        process = re.fullmatch(r"/proc/(\d+)/(oom_score|oom_score_adj)", path)
        if process is None:
            return data
        if process[2] == "oom_score":
            return b"0\n"
        return b"%d\n" % shown(int(data)) if self._guaranteed in super().read(f"/proc/{process[1]}/cgroup") else data


class ClampedProcess(oomadj.HeldProcess):
    def oom_score_adj(self) -> int:
        return shown(super().oom_score_adj())

    def set_oom_score_adj(self, value: int) -> None:
        super().set_oom_score_adj(real(value))


if __name__ == "__main__":
    oomadj.HeldProcess = ClampedProcess  # type: ignore[misc]
    told = options.parse(sys.argv[1:])
    intervals = Intervals(told.refresh_seconds, told.scan_seconds, Cadence(2.0, 0.2))
    agent = Agent(
        told.node_name,
        from_kubeconfig(told.kubeconfig or ""),
        host=ClampedHost(os.environ["GUARANTEED"]),
        listen=told.listen,
        intervals=intervals,
        mitigate=told.mitigate,
    )
    agent.handle_signals()
    sys.exit(0 if agent.run() else 1)
