"""One real control plane for all tests of this directory; each test makes namespaces and names of its own."""

import secrets
from collections.abc import Iterator

import pytest

from cluster.controlplane import ControlPlane
from nodemem.api.resources import RESOURCES
from nodemem.api.schema import definition


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    with ControlPlane() as running:
        yield running


@pytest.fixture(scope="session")
def cluster(control_plane: ControlPlane) -> ControlPlane:
    """The control plane, with the custom resource definitions."""
    control_plane.install(*(definition(each) for each in RESOURCES))
    return control_plane


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A new namespace that has its default service account; deleted at the end."""
    name = f"test-{secrets.token_hex(4)}"
    control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    control_plane.kubectl("wait", "--for=create", "--timeout=60s", "-n", name, "serviceaccount/default")
    yield name
    control_plane.request("DELETE", f"/api/v1/namespaces/{name}")
