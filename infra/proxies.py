"""The proxies of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY): for other machines, never for this one."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import httpx

from infra.errors import BadInput

log = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy")


def spare_loopback() -> None:
    """Have no proxy used for this machine, in this process and its children: Prefect's server, vLLM, MinIO, ...

    Raises:
        BadInput: a proxy's address cannot be read, or it speaks SOCKS and what httpx needs for that is not installed.
    """
    for name in filter(os.environ.get, _PROXIES):
        value = os.environ[name]
        if value.lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise BadInput(
                f"{name} names a SOCKS proxy, for which Prefect and this project need another package: "
                "`pip install 'httpx[socks]'`, name an HTTP proxy, or unset the variable"
            )
        try:
            url = httpx.Proxy(value if "://" in value else f"http://{value}").url
        except (httpx.InvalidURL, ValueError):
            url = httpx.URL()
        if not url.host or (url.port or 0) >= 2**16:  # the value is not shown: it may hold a password
            raise BadInput(f"{name} is no proxy's address: expected http://HOST:PORT; correct or unset the variable")
    os.environ.update(sparing_loopback(os.environ))


def spare(url: str) -> None:
    """Have no proxy used for the machine of a URL, in this process and its children."""
    host = urlsplit(url).hostname or ""
    os.environ.update(sparing_loopback({**os.environ, "no_proxy": f"{os.environ.get('no_proxy', '')},{host}"}))


def sparing_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY and no_proxy, with what the user listed in either and with this machine's own names.

    An IPv6 address may stand in brackets. What httpx cannot read, such as a range of IPv6 addresses, is left out.
    """
    given = f"{environment.get('NO_PROXY', '')},{environment.get('no_proxy', '')}".split(",")
    names = dict.fromkeys(name for each in (*given, *LOOPBACK) if (name := _as_httpx_reads(each.strip())))
    spared = "*" if "*" in names else ",".join(names)
    return {"NO_PROXY": spared, "no_proxy": spared}


def _as_httpx_reads(entry: str) -> str:
    """An entry of NO_PROXY in a form that does not make httpx fail; "" if there is none."""
    name = entry.removeprefix("[").removesuffix("/128").removesuffix("]")
    with suppress(ValueError):
        return str(ipaddress.IPv6Address(name))
    try:
        httpx.URL(entry if "://" in entry else f"all://*{entry}")
    except httpx.InvalidURL:
        log.warning("NO_PROXY: %s is left out, since httpx cannot read it", entry.rpartition("@")[2])
        return ""
    return entry


def may_use_proxy(url: str) -> bool:
    """Whether requests to a URL may go through a proxy of the environment: not if its host is this machine."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return True
    return not (address.is_loopback or address.is_unspecified)
