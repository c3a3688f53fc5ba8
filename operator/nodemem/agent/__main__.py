"""``python -m nodemem.agent --name=value ...``: the agent alone, without what the command line's other parts import.

Exit codes: 0 told to end; 1 it could not start, or something in it broke.
"""

from nodemem.agent import lean  # isort: skip # noqa: F401 - first, for what the others import

import sys

from nodemem.agent import options
from nodemem.agent.config import ConfigError, from_kubeconfig, in_cluster
from nodemem.agent.loop import Agent, Intervals


def main(words: list[str]) -> int:
    try:
        told = options.parse(words)
        server = from_kubeconfig(told.kubeconfig) if told.kubeconfig else in_cluster()
    except ConfigError as error:
        print(f"nodemem agent: {error}", file=sys.stderr)
        return 1
    intervals = Intervals(refresh_seconds=told.refresh_seconds, scan_seconds=told.scan_seconds)
    try:
        agent = Agent(
            told.node_name,
            server,
            listen=told.listen,
            intervals=intervals,
            enforce=told.enforce,
            mitigate=told.mitigate,
        )
    except OSError as error:
        print(f"nodemem agent: can't listen on {told.listen[0] or '*'}:{told.listen[1]}: {error}", file=sys.stderr)
        return 1
    agent.handle_signals()
    return 0 if agent.run() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
