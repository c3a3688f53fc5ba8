"""A real Kubernetes API server on loopback: etcd, kube-apiserver, kube-controller-manager in a temporary directory.

RBAC and service account tokens are on, admission plugins are the defaults. Everything ends with the thread that
started it, also when its process is killed (PR_SET_PDEATHSIG); the directory goes at an orderly end, else at the next
start.
"""

import base64
import ctypes
import fcntl
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cluster import binaries

_PREFIX = "nodemem-cluster-"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ApiError(RuntimeError):
    """An answer of the API server that is no success: ``code`` and the Status ``message``."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class ControlPlane:
    """``with ControlPlane() as cluster: cluster.kubectl("get", "nodes")``."""

    def __init__(self, *, controller_manager: bool = True, apiserver_args: tuple[str, ...] = ()) -> None:
        self._with_controller_manager = controller_manager
        self._apiserver_args = apiserver_args
        remove_stale_directories()
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = _lock(self.directory)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._port = free_port()
        self._etcd_port, self._peer_port = free_port(), free_port()
        self._token = secrets.token_hex(16)
        self.url = f"https://127.0.0.1:{self._port}"
        self.ca_file = self.directory / "certs" / "apiserver.crt"
        self.kubeconfig = self.directory / "admin.kubeconfig"

    def __enter__(self) -> "ControlPlane":
        try:
            self._prepare()
            self.start_etcd()
            self.start_apiserver()
            if self._with_controller_manager:
                self.start_controller_manager()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            self.stop(name)
        shutil.rmtree(self.directory, ignore_errors=True)
        self._lock.close()

    # Processes

    def start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        self._spawn(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self._wait("etcd", f"{client}/health", 30)

    def start_apiserver(self) -> None:
        key = self.directory / "service-account.key"
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--cert-dir={self.directory / 'certs'}",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none",
            f"--audit-policy-file={self.directory / 'audit-policy.yaml'}",
            f"--audit-log-path={self.audit_log}",
            *self._apiserver_args,
        )
        self._wait("kube-apiserver", f"{self.url}/readyz", 120)

    def start_controller_manager(self) -> None:
        """Garbage collection, service account tokens, namespace deletion."""
        self._spawn(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
            f"--cert-dir={self.directory / 'controller-manager-certs'}",
            f"--service-account-private-key-file={self.directory / 'service-account.key'}",
            f"--root-ca-file={self.ca_file}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller,"
            "serviceaccount-token-controller,root-ca-certificate-publisher-controller",
        )
        self._until(
            "kube-controller-manager",
            lambda: self.request("GET", "/api/v1/namespaces/default/serviceaccounts/default"),
            60,
        )

    def stop(self, name: str, how: int = signal.SIGTERM) -> None:
        """End one of the programs: SIGTERM, or SIGKILL for a crash. Nothing happens if it doesn't run."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def suspend(self, name: str) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGCONT)

    @property
    def audit_log(self) -> Path:
        """One JSON audit event (level Metadata, stage ResponseComplete) a line for every write."""
        return self.directory / "audit.log"

    def writes(self) -> list[dict[str, Any]]:
        """The audit events of all writes so far (leases left out)."""
        text = self.audit_log.read_text() if self.audit_log.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]  # what follows the last newline is being written

    def pids(self) -> dict[str, int]:
        """The programs that were started and not stopped."""
        return {name: process.pid for name, process in self._processes.items()}

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def compact(self) -> None:
        """Make etcd forget every revision but the newest, as the API server has it do every five minutes."""
        found = self._etcd("/v3/kv/range", {"key": base64.b64encode(b"/").decode(), "keys_only": True})
        self._etcd("/v3/kv/compaction", {"revision": found["header"]["revision"], "physical": True})

    def _etcd(self, path: str, body: Mapping[str, Any]) -> Any:
        data = json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self._etcd_port}{path}", data=data, timeout=30) as answer:
            return json.loads(answer.read())

    # Clients

    def request(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, content_type: str | None = None
    ) -> Any:
        """One API request as the administrator, or as the bearer of ``token``.

        Raises ApiError, and OSError where the API server gave no whole answer.
        """
        kind = content_type or {"PATCH": "application/merge-patch+json"}.get(method, "application/json")
        request = urllib.request.Request(
            f"{self.url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token or self._token}", "Content-Type": kind},
        )
        try:
            try:
                with urllib.request.urlopen(request, context=self._tls(), timeout=30) as answer:
                    data = answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    text = error.read().decode(errors="replace")
                with suppress(ValueError, KeyError, TypeError):
                    text = json.loads(text)["message"]
                raise ApiError(error.code, text) from None
        except http.client.HTTPException as error:
            raise ConnectionError(f"{method} {path}: {error!r}") from error
        return json.loads(data) if data[:1] in (b"{", b"[") else data.decode()

    def apply(
        self, *objects: Mapping[str, Any], manager: str = "test", token: str | None = None, subresource: str = ""
    ) -> list[Any]:
        """Server-side apply with strict field validation. Raises ApiError."""
        query = f"fieldManager={manager}&force=true&fieldValidation=Strict"
        return [
            self.request(
                "PATCH",
                f"{self.path_of(item)}{subresource and '/' + subresource}?{query}",
                item,
                content_type="application/apply-patch+yaml",
                token=token,
            )
            for item in objects
        ]

    def install(self, *definitions: Mapping[str, Any]) -> None:
        """Custom resource definitions, until they are Established and served."""
        self.apply(*definitions)
        names = [item["metadata"]["name"] for item in definitions]
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", *(f"crd/{name}" for name in names))
        for item in definitions:
            spec = item["spec"]
            path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
            self._until("kube-apiserver", lambda path=path: self.request("GET", path), 30)

    def remove_definitions(self, *selection: str) -> None:
        """Custom resource definitions, as ``kubectl delete`` selects them, until they are gone.

        The API server can't list the objects of a definition that is new, and tries again: after a pause that doubles
        with every such failure it ever had with a definition of this name, to minutes. A change makes it look at once.
        """
        said = self.kubectl("delete", *selection, "--wait=false", "--ignore-not-found", "-o", "name").split()
        named = [each for each in said if each.startswith("customresourcedefinition")]  # or: No resources found
        deadline = time.monotonic() + 60
        while left := [each for each in named if self.kubectl("get", each, "--ignore-not-found")]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{', '.join(left)}: not gone after 60 s")
            for each in left:
                self.kubectl("annotate", each, f"touched={time.monotonic()}", "--overwrite", check=False)
            time.sleep(0.2)

    def add_namespace(self, name: str, **labels: str) -> None:
        """With the service account that its pods get. The controller manager would make it, but after a restart of the
        API server it takes half a minute to notice anything."""
        self.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}},
        )

    def path_of(self, item: Mapping[str, Any]) -> str:
        """The URL path of an object, by discovery of its kind."""
        api_version, kind = item["apiVersion"], item["kind"]
        prefix = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        found = next(
            (r for r in self.request("GET", prefix)["resources"] if r["kind"] == kind and "/" not in r["name"]), None
        )
        if found is None:
            raise LookupError(f"the server has no {kind} in {api_version}")
        middle = f"/namespaces/{item['metadata'].get('namespace', 'default')}" if found["namespaced"] else ""
        return f"{prefix}{middle}/{found['name']}/{item['metadata']['name']}"

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> str:
        """Real kubectl as the administrator; its standard output. Raises CalledProcessError with both outputs."""
        result = subprocess.run(
            [binaries.find_kubectl(), *args],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.directory)},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check and result.returncode != 0:
            raise subprocess.CalledProcessError(result.returncode, ["kubectl", *args], result.stdout, result.stderr)
        return result.stdout if check else result.stdout + result.stderr

    def service_account_token(
        self, namespace: str, name: str, *, pod: Mapping[str, Any] | None = None, seconds: int = 3600
    ) -> str:
        """A bound token, as the kubelet would mount it: with ``pod``, it carries the claims of the pod and its node."""
        spec: dict[str, Any] = {"expirationSeconds": seconds}
        if pod is not None:
            meta = pod["metadata"]
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        answer = self.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        token: str = answer["status"]["token"]
        return token

    def write_kubeconfig(self, path: Path, token: str) -> Path:
        """A kubeconfig for the bearer of ``token``."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": self.url,
                        "certificate-authority-data": base64.b64encode(self.ca_file.read_bytes()).decode(),
                    },
                }
            ],
        }
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path

    # Details

    def _prepare(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        _private(self.directory / "service-account.key", pem)
        _private(self.directory / "tokens.csv", f'{self._token},admin,admin,"system:masters"\n'.encode())
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": [
                {"level": "None", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}]},
                {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
                {"level": "None"},
            ],
        }
        (self.directory / "audit-policy.yaml").write_text(json.dumps(policy))

    def _spawn(self, name: str, *args: str) -> None:
        program = binaries.find(name)
        parent = os.getpid()

        def end_with_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(program), *args],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def _wait(self, name: str, url: str, seconds: float) -> None:
        def ask() -> None:
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self._token}"})
            context = self._tls() if url.startswith("https") else None
            urllib.request.urlopen(request, context=context, timeout=5).close()

        self._until(name, ask, seconds)
        if url.startswith(self.url) and not self.kubeconfig.exists():
            self.write_kubeconfig(self.kubeconfig, self._token)

    def _until(self, name: str, ask: Callable[[], object], seconds: float) -> None:
        """Ask until it answers. Raises RuntimeError with the program's log when it ended or the time is over."""
        deadline = time.monotonic() + seconds
        while True:
            code = self._processes[name].poll()
            if code is not None:
                raise RuntimeError(f"{name} ended with {code}:\n{self.log(name)[-3000:]}")
            try:
                ask()
                return
            except (OSError, ApiError) as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{name}: not ready after {seconds:.0f} s: {error}") from error
                time.sleep(0.1)

    def _tls(self) -> ssl.SSLContext:
        if not self.ca_file.exists():
            raise OSError(f"{self.ca_file}: not there yet")
        return ssl.create_default_context(cafile=str(self.ca_file))


def remove_stale_directories() -> None:
    """Those of owners that died: nobody holds their lock any more. The lock, unlike a pid, holds across containers."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(directory / "owner", os.O_RDWR)
        except OSError:
            continue  # somebody is just creating it, or just removed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _lock(directory: Path) -> IO[bytes]:
    """The file gets its name when it is locked: nobody finds it unlocked while the owner lives."""
    lock = (directory / "owner.new").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(lock.name, directory / "owner")
    return lock


_given: set[int] = set()


def free_port() -> int:
    """Of those below what the kernel gives to whoever asks for any: one of these another may have been given meanwhile,
    or a connection. None twice: it may take a while until somebody listens there."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        if port in _given:
            continue
        _given.add(port)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _private(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
