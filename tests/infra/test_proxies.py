"""Proxies of the environment: other machines are reached through them, this one never is."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from endpoint import Endpoint

from infra.errors import BadInput
from infra.proxies import LOOPBACK, may_use_proxy, spare_loopback, sparing_loopback
from infra.serving.completions import Client, UnreachableError
from infra.serving.remote_server import RemoteServer

VARIABLES = [
    written for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for written in (name, name.lower())
]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is put back
        monkeypatch.delenv(name)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """An HTTP proxy, which answers itself."""
    made = Endpoint(lambda _: (200, {"data": [{"id": "m", "max_model_len": 10}], "by": "the proxy"}))
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, made.url)
    yield made
    made.close()


def post(url: str) -> dict[str, object]:
    async def once() -> dict[str, object]:
        async with Client(url, max_in_flight=1, alive=lambda: None, attempts=1) as client:
            return await client.post("/v1/chat/completions", {}, "chat c")

    return asyncio.run(once())


def test_other_machines_are_asked_through_the_proxy_of_the_environment(proxy):
    assert post("http://judge.example")["by"] == "the proxy"
    assert proxy.paths == ["http://judge.example/v1/chat/completions"]
    assert RemoteServer("http://vllm.example/v1", "m").reachable(10)
    assert proxy.paths[1:] == ["http://vllm.example/v1/models"]


def test_a_host_of_no_proxy_is_asked_directly(proxy, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "judge.invalid")
    with pytest.raises(UnreachableError):
        post("http://judge.invalid")
    assert proxy.paths == []


def test_this_machine_is_asked_directly(proxy):
    server = Endpoint(lambda _: (200, {"by": "the server"}))
    assert post(server.url)["by"] == "the server"
    assert post(server.url.replace("127.0.0.1", "localhost"))["by"] == "the server"
    assert proxy.paths == []
    server.close()


@pytest.mark.parametrize(
    ("url", "used"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://127.9.9.9", False),
        ("http://localhost:1/v1", False),
        ("http://LOCALHOST.", False),
        ("http://vllm.localhost", False),
        ("http://[::1]:8000", False),
        ("http://0.0.0.0:8000", False),
        ("http://10.0.0.7:8000", True),
        ("https://api.openai.com/v1", True),
        ("https://localhost.example", True),
        ("https://[2001:db8::1]", True),
    ],
)
def test_only_this_machine_is_spared(url, used):
    assert may_use_proxy(url) is used


@pytest.mark.parametrize(
    ("given", "spared"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "10.0.0.0/8, .corp"}, "10.0.0.0/8,.corp,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "a", "no_proxy": "b,localhost"}, "a,b,localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_what_the_user_spares_is_kept(given, spared):
    assert sparing_loopback(given) == {"NO_PROXY": spared, "no_proxy": spared}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("localhost,[::1]", []),
        ("[2001:db8::1]", ["2001:db8::1"]),
        ("[2001:db8::1]/128", ["2001:db8::1"]),
        ("::1/128,2001:db8::1/128", ["2001:db8::1"]),
        ("fe80::/10,[fe80::]/10,judge.invalid", ["judge.invalid"]),
        ("fe80::1%eth0,http://judge.invalid", ["fe80::1%eth0", "http://judge.invalid"]),
        ("[::1]:80,judge:x,http://me:PASSWORD@judge:x", []),
    ],
)
def test_what_httpx_cannot_read_in_no_proxy_does_not_stop_it(proxy, monkeypatch, caplog, given, kept):
    monkeypatch.setenv("NO_PROXY", given)
    spare_loopback()
    assert set(os.environ["NO_PROXY"].split(",")) == {*LOOPBACK, *kept}
    assert post("http://judge.example")["by"] == "the proxy"
    assert "PASSWORD" not in caplog.text


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "value",
    [
        "http://me:PASSWORD@proxy:port",
        "me:PASSWORD@proxy:port",
        "http://me:PASS/WORD@proxy:80",
        "http://proxy:99999",
        "http://[::1",
        "http://:80",
        "ftp://proxy",
    ],
)
def test_a_proxy_whose_address_cannot_be_read_is_named_without_its_password(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=rf"^{name} is no proxy's address: expected http://HOST:PORT") as error:
        spare_loopback()
    assert "PASS" not in f"{error.value} {error.value.__cause__}"


def test_libraries_and_children_spare_this_machine(proxy):
    """Prefect's client and S3's read the same variables."""
    server = Endpoint(lambda _: (200, {"by": "the server"}))
    assert httpx.get(server.url).json()["by"] == "the proxy"
    spare_loopback()
    assert httpx.get(server.url).json()["by"] == "the server"
    assert all(name in os.environ["no_proxy"].split(",") for name in LOOPBACK)
    child = f"import httpx; print(httpx.get({server.url!r}).json()['by'])"
    assert subprocess.check_output([sys.executable, "-c", child], text=True).strip() == "the server"
    server.close()


def test_a_socks_proxy_that_cannot_be_used_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1:1080")
    with pytest.raises(BadInput, match=r"ALL_PROXY names a SOCKS proxy.*httpx\[socks\]"):
        spare_loopback()
