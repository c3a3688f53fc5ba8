"""``python -m cluster.fast_agent``: the agent with the cadence of writes in $CADENCE, seconds for its minutes."""

import os
import sys

from nodemem.agent import lean  # isort: skip # noqa: F401

from nodemem.agent import options
from nodemem.agent.changes import Cadence
from nodemem.agent.config import from_kubeconfig
from nodemem.agent.loop import Agent, Intervals

if __name__ == "__main__":
    told = options.parse(sys.argv[1:])
    heartbeat, apart = map(float, os.environ["CADENCE"].split())
    intervals = Intervals(told.refresh_seconds, told.scan_seconds, Cadence(heartbeat, apart))
    server = from_kubeconfig(told.kubeconfig or "")
    agent = Agent(
        told.node_name, server, listen=told.listen, intervals=intervals, enforce=told.enforce, mitigate=told.mitigate
    )
    agent.handle_signals()
    sys.exit(0 if agent.run() else 1)
