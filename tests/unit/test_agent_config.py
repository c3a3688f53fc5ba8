"""Where the API server is: kubeconfigs, the files of a pod, and what is wrong with them in a sentence."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nodemem.agent import options
from nodemem.agent.config import ConfigError, Token, from_kubeconfig, in_cluster


def kubeconfig(tmp_path: Path, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> str:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://[::1]:6443/base/"} | (cluster or {})}],
        "users": [{"name": "u", "user": {"token": "secret"} if user is None else user}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    return str(path)


def test_a_kubeconfig_with_a_token(tmp_path: Path) -> None:
    server = from_kubeconfig(kubeconfig(tmp_path))
    assert (server.host, server.port, server.prefix) == ("::1", 6443, "/base")
    assert server.token.header() == "Bearer secret"


def test_a_kubeconfig_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(
        "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n"
        "clusters: [{name: k, cluster: {server: https://api.example}}]\nusers: [{name: u, user: {tokenFile: token}}]\n"
    )
    (tmp_path / "token").write_text("from-file\n")
    server = from_kubeconfig(str(path))
    assert (server.host, server.port) == ("api.example", 443)
    assert server.token.header() == "Bearer from-file"


@pytest.mark.parametrize(
    ("cluster", "user", "words"),
    [
        ({"server": "http://api.example"}, None, "expected https://HOST"),
        ({"server": "https://user@api.example"}, None, "expected https://HOST"),
        ({"insecure-skip-tls-verify": True}, None, "insecure-skip-tls-verify is not supported"),
        ({"proxy-url": "http://proxy"}, None, "proxy-url is not supported"),
        ({}, {"exec": {"command": "aws"}}, "exec is not supported"),
        ({}, {}, "has no token and no client certificate"),
        ({}, {"token": "x", "client-certificate-data": "YQ=="}, "only work together"),
        ({}, {"client-certificate-data": "?"}, "client-certificate-data is not base64"),
        ({"certificate-authority-data": "YQ=="}, None, "the certificates in it can't be used"),
        ({"certificate-authority": "/nonexistent"}, None, "the certificates in it can't be used"),
        ({}, {"tokenFile": "/nonexistent"}, "no token to authenticate with"),
    ],
)
def test_a_bad_kubeconfig_gets_a_sentence(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any] | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        from_kubeconfig(kubeconfig(tmp_path, cluster=cluster, user=user))


@pytest.mark.parametrize("text", ["{}", "[]", "a: b", "{", "current-context: x\ncontexts: []"])
def test_a_file_that_is_no_kubeconfig_gets_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(ConfigError, match=r"expected a current-context|neither JSON nor YAML"):
        from_kubeconfig(str(tmp_path / "k"))


def test_a_pod_s_files(tmp_path: Path) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(ConfigError, match="no token to authenticate with"):
        in_cluster(str(tmp_path), environment)
    (tmp_path / "token").write_text("bound")
    with pytest.raises(ConfigError, match="certificate can't be checked"):
        in_cluster(str(tmp_path), environment)
    (tmp_path / "ca.crt").write_text("")
    server = in_cluster(str(tmp_path), environment)
    assert (server.host, server.port, server.token.header()) == ("10.96.0.1", 443, "Bearer bound")


def test_outside_of_a_pod_the_sentence_names_the_way_out() -> None:
    with pytest.raises(ConfigError, match="--kubeconfig FILE"):
        in_cluster("/nonexistent", {})


def test_a_token_is_read_again_each_minute_and_at_once_when_it_was_refused(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "token"
    path.write_text("first")
    token = Token(path=str(path), clock=lambda: now[0])
    assert token.header() == "Bearer first"
    path.write_text("second")
    now[0] = 59.0
    assert token.header() == "Bearer first"
    now[0] = 60.0
    assert token.header() == "Bearer second"
    path.write_text("third")
    assert token.expire()
    assert token.header() == "Bearer third"
    path.unlink()
    now[0] = 200.0
    assert token.header() == "Bearer third"
    path.write_text("two words\r\nX-Evil: 1")
    token.expire()
    assert token.header() == "Bearer third"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "no node name"),
        (["--node-name=N 1"], "is no name of a Node"),
        (["--node-name=n1", "--listen=8080"], "expected ADDRESS:PORT"),
        (["--node-name=n1", "--listen=:99999"], "expected ADDRESS:PORT"),
        (["--node-name=n1", "--interval=0"], "expected seconds"),
        (["--node-name=n1", "--refresh=nan"], "expected seconds"),
        (["--node-name=n1", "--verbose"], "see 'nodemem agent --help'"),
    ],
)
def test_bad_options_get_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        options.parse(words, {})


def test_options() -> None:
    told = options.parse(["--node-name=n1.example", "--listen=[::1]:80", "--interval=5"], {})
    assert told == options.Options("n1.example", None, ("::1", 80), 5.0, 5.0)
    assert options.parse([], {"NODE_NAME": "n2"}).node_name == "n2"
    assert [options.parse([*words, "--node-name=n1"], {}).enforce for words in ([], ["--enforce"])] == [False, True]
    assert [options.parse([*words, "--node-name=n1"], {}).mitigate for words in ([], ["--mitigate"])] == [False, True]
    assert options.parse(["--node-name=n1"], {}).listen == ("", 9812)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["-m", "nodemem.agent"], 1, "no node name"),
        (["-m", "nodemem.agent", "--node-name=n1"], 1, "--kubeconfig FILE"),
        (["-m", "nodemem", "agent"], 2, "no node name"),
        (["-m", "nodemem", "agent", "--node-name", "n1", "--kubeconfig", "/nonexistent"], 1, "No such file"),
    ],
)
def test_the_agent_that_can_t_start_says_why_in_one_line(arguments: list[str], code: int, sentence: str) -> None:
    result = subprocess.run([sys.executable, *arguments], env={"PATH": "/usr/bin"}, capture_output=True, text=True)
    assert result.returncode == code
    assert sentence in result.stderr
    assert result.stderr.startswith("nodemem agent: ")
    assert len(result.stderr.splitlines()) == 1


def test_the_agent_imports_nothing_heavy() -> None:
    heavy = {"kopf", "kubernetes", "pydantic", "rich", "yaml", "asyncio", "unittest"}
    heavy |= {"inspect", "ast", "email", "argparse", "tarfile", "datetime", "random", "fractions"}
    script = "import sys, nodemem.agent.__main__; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert not heavy & set(result.stdout.split())
