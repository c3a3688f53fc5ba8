"""One real control plane for all tests of this directory; each test makes namespaces and names of its own."""

import secrets
from collections.abc import Iterator

import pytest

from cluster.controlplane import ControlPlane
from nodemem.api.resources import RESOURCES
from nodemem.api.schema import definition


@pytest.fixture(scope="session")
def cluster() -> Iterator[ControlPlane]:
    """The control plane, with nodemem's custom resource definitions.

    They come before the controller manager, whose garbage collector looks for new kinds only twice a minute.
    """
    with ControlPlane(controller_manager=False) as running:
        running.install(*(definition(each) for each in RESOURCES))
        running.start_controller_manager()
        yield running


@pytest.fixture
def namespace(cluster: ControlPlane) -> Iterator[str]:
    """A new namespace that has its default service account; deleted at the end."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.add_namespace(name)
    yield name
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")
