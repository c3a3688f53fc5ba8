"""Which tests may run at the same time (``make test``: pytest-xdist, two workers, ``--dist loadgroup``).

What looks at this machine, or makes processes, mounts or memory on it, runs one after the other: figures of the whole
node are part of it. Beside it runs what has only an API server, a guest or nothing.
"""

from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_ELSEWHERE = (
    "unit/",
    "vm/",
    "cluster/test_chart_values.py",
    "cluster/test_controller",
    "cluster/test_controlplane.py",
    "cluster/test_crds.py",
    "cluster/test_limits.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        elsewhere = item.path.relative_to(_HERE).as_posix().startswith(_ELSEWHERE)
        item.add_marker(pytest.mark.xdist_group("elsewhere" if elsewhere else "this machine"))
