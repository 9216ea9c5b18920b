"""The proxies of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY): for other machines, never for this one."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from infra.errors import BadInput

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SOCKS = ("ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy")


def spare_loopback() -> None:
    """Have no proxy used for this machine, in this process and its children: Prefect's server, vLLM, MinIO, ...

    Raises:
        BadInput: a proxy speaks SOCKS, and what httpx needs for that is not installed.
    """
    for name in _SOCKS:
        if os.environ.get(name, "").lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise BadInput(
                f"{name} names a SOCKS proxy, for which Prefect and this project need another package: "
                "`pip install 'httpx[socks]'`, name an HTTP proxy, or unset the variable"
            )
    os.environ.update(sparing_loopback(os.environ))


def sparing_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY and no_proxy, with what the user listed in either and with this machine's own names."""
    given = f"{environment.get('NO_PROXY', '')},{environment.get('no_proxy', '')}".split(",")
    names = dict.fromkeys(name for each in (*given, *LOOPBACK) if (name := each.strip()))
    spared = "*" if "*" in names else ",".join(names)
    return {"NO_PROXY": spared, "no_proxy": spared}


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
