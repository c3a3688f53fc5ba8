"""Which tests may run at the same time: ``make -j2 test-here test-elsewhere`` is two pytest beside each other.

What looks at this machine, or makes processes, mounts or memory on it, runs one after the other: figures of the whole
node are part of it. The mark ``elsewhere`` is for what has only an API server, a guest or nothing.
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
)


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(_HERE).as_posix().startswith(_ELSEWHERE):
            item.add_marker(pytest.mark.elsewhere)
