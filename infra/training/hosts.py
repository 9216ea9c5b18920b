"""Which machines train: plain data that flows can import without torch."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from infra.errors import BadInput

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


class Hosts(BaseModel, frozen=True, extra="forbid"):
    """The machines that train together. They change no row: the cache key leaves them out."""

    hosts: tuple[str, ...] = Field(
        (),
        description="Names or addresses of the machines that train, as the others reach them; the first one runs the "
        "flow, the others an agent (`python -m infra.training.node`). Each has `ranks` training processes. If empty, "
        "this machine trains alone. `BOLT_WORK_DIR` must be a folder that all see under the same path.",
    )
    join_timeout_s: float = Field(
        600, gt=0, description="Seconds to wait for the agents of all hosts, at the run's start and for each training."
    )
    lost_after_s: float = Field(
        60,
        ge=3,
        description="Seconds without a sign of life after which a host counts as lost. A network file system may show "
        "a change only after a minute.",
    )

    @field_validator("hosts")
    @classmethod
    def _plain_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not (_NAME.fullmatch(host) or _address(host)):
                raise ValueError(f"{host!r} is no host: give a name or an address, without port, user or scheme")
        if doubled := sorted({host for host in hosts if hosts.count(host) > 1}):
            raise ValueError(f"each machine once; {', '.join(doubled)} stands there more often")
        return hosts

    @model_validator(mode="after")
    def _first_can_be_reached(self) -> Self:
        if self.hosts and _loops_back(self.hosts[0]) and not all(map(_loops_back, self.hosts)):
            raise ValueError(
                f"hosts: the first is {self.hosts[0]}, which on every other machine means that machine itself: give a "
                "name or an address at which the others reach the machine of the flow"
            )
        return self

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return max(1, len(self.hosts))

    def title(self, node: int) -> str:
        """A machine as errors name it: its number and its host."""
        return f"node {node} ({self.hosts[node]})"

    def check_first(self) -> None:
        """Raise `BadInput` if the first host is not this machine."""
        first, here = self.hosts[0], socket.gethostname()
        try:
            found = socket.getaddrinfo(first, 0, type=socket.SOCK_STREAM)
        except OSError as error:
            raise BadInput(f"training.hosts: the first, {first!r}, has no address here, on {here}: {error}") from error
        addresses = sorted({str(entry[4][0]) for entry in found})
        if not any(_is_ours(entry[0], entry[4]) for entry in found):
            raise BadInput(
                f"training.hosts: the first is {first} ({', '.join(addresses)}), but the flow runs on {here}, which "
                "has no such address: put the flow's machine first"
            )


HERE = Hosts()
"""This machine alone."""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _loops_back(host: str) -> bool:
    found = _address(host)
    return found.is_loopback if found else host == "localhost"


def _is_ours(family: int, address: tuple[Any, ...]) -> bool:
    """Whether an address is one of this machine's: only then a socket can be bound to it."""
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        try:
            trial.bind(address)
        except OSError:
            return False
    return True
