"""Training on several machines, as seen from node 0, which runs the flow: see `infra.training.signs`.

Each machine has a torchrun of its own. Node 0 starts its own one; the others are started by the agents
(`infra.training.node`), which wait for trainings between which they stay. If a machine fails or is lost, all end.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from infra.errors import BadInput
from infra.processes import torchrun
from infra.processes.causes import cause
from infra.processes.torchrun import Place, TrainerError, last_log_lines, metrics_path, start, written
from infra.processes.watchdog import GuardedProcess, refuse_when_ending, tail
from infra.training.hosts import Hosts
from infra.training.signs import (
    BEAT_S,
    FOLDER,
    Offer,
    Pulse,
    Sign,
    check_folder,
    difference,
    facts_here,
    node_log,
    read,
    sign_path,
)
from infra.training.slot import Slot

log = logging.getLogger(__name__)

NETWORK_VARIABLES = ("NCCL_", "GLOO_")
"""Beginnings of the environment variables that node 0 passes on to machines that do not set them."""
_CULPRIT_S = 15.0  # a rank that fails cuts the others off, whose torchrun may end before its own
_CUT_OFF = re.compile(
    r"(closed|reset) by peer|broken pipe|connection refused|remote process exited|ncclRemoteError|DistNetworkError|"
    r"socket (timeout|closed)|collective operation timeout|unbound buffer|failed to recv",
    re.IGNORECASE,
)
"""Errors of a rank that has lost another one: the cause stands in another machine's log."""


class Team:
    """The agents of nodes 1 to N - 1, as seen in the shared folder."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.nodes = range(1, hosts.nodes)
        self._pulses = {node: Pulse(sign_path(folder, node)) for node in self.nodes}

    def sign(self, node: int) -> Sign | None:
        """What a node's agent says; None if it has said nothing, or the folder cannot be read just now."""
        try:
            return read(sign_path(self.folder, node), Sign)
        except OSError as error:
            log.warning("%s: %s", sign_path(self.folder, node), error)
            return None

    def lost(self, node: int) -> str:
        """Why a node's agent is not there, in words; "" if it is."""
        beats = self._pulses[node].beats(self.hosts.lost_after_s)
        found = self.sign(node)
        if found is None:
            return "" if beats else f"no agent has written to {self.folder / FOLDER}"
        who = f"its agent (process {found.by.pid} on {found.by.host})"
        if found.left:
            return f"{who} was told to end"
        if found.by.is_gone():
            return f"{who} was killed"
        return "" if beats else f"{who} gave no sign of life for {self.hosts.lost_after_s:g} s"

    def beaten_since(self, node: int, since: float) -> bool:
        """Whether a node's agent has given a sign of life since a time on the monotonic clock."""
        last = self._pulses[node].last()
        return last is not None and last > since

    def gathered(self, unready: Callable[[Sign], str], each_time: Callable[[], None]) -> dict[int, Sign]:
        """Wait until all agents are there and `unready` has nothing to say of any; `each_time` is called meanwhile.

        Raises:
            BadInput: an agent has another version of the code or of a library, or refuses.
            TrainerError: they did not come in time.
            EndingError: this process was told to end.
        """
        ours, deadline = facts_here(), time.monotonic() + self.hosts.join_timeout_s
        logged = False
        while True:
            refuse_when_ending()
            each_time()
            signs: dict[int, Sign] = {}
            missing: dict[int, str] = {}
            for node in self.nodes:
                why, found = self.lost(node), self.sign(node)
                if why or found is None:
                    missing[node] = why
                elif differs := difference(found.facts, ours):
                    raise BadInput(f"{self.hosts.title(node)} and node 0 must be set up alike, but it has {differs}")
                elif unsaid := unready(found):
                    missing[node] = unsaid
                else:
                    signs[node] = found
            if not missing:
                return signs
            if time.monotonic() > deadline:
                raise TrainerError(self._absence(missing))
            if not logged:
                waiting = ", ".join(map(self.hosts.title, missing))
                log.info("waiting for %s (agents in %s)", waiting, self.folder / FOLDER)
                logged = True
            time.sleep(BEAT_S)

    def _absence(self, missing: Mapping[int, str]) -> str:
        """Who came, who did not and why, and what to do."""
        hosts, here = self.hosts, socket.gethostname()
        came = [f"{hosts.title(0)[:-1]}, this machine)", *(hosts.title(n) for n in self.nodes if n not in missing)]
        absent = "; ".join(f"{hosts.title(node)}: {why}" for node, why in missing.items())
        return (
            f"{len(came)} of {hosts.nodes} hosts came within {hosts.join_timeout_s:g} s: {', '.join(came)}. Missing: "
            f"{absent}. Start an agent on each: `python -m infra.training.node --node-rank N --folder {self.folder}`. "
            f"Where one runs, {self.folder} is not the folder of that name here on {here}: all hosts must share it"
        )


def check_hosts(hosts: Hosts, folder: Path) -> None:
    """Wait for the agents of all hosts before a GPU is used, so that a missing one or a folder that is not shared does
    not stop the run hours later.

    Raises:
        BadInput: the first host is not this machine, an agent did not come, or its machine is set up in another way.
    """
    if hosts.nodes == 1:
        return
    hosts.check_first()
    check_folder(folder)
    try:
        signs = Team(hosts, folder).gathered(lambda _sign: "", lambda: None)
    except TrainerError as error:
        raise BadInput(f"training.hosts: {error}") from error
    log.info("%s: the agents of %s are there", folder, ", ".join(hosts.title(node) for node in signs))


def launch(module: str, config: BaseModel, *, ranks: int, log_path: Path, hosts: Hosts, folder: Path) -> None:
    """Run `python -m MODULE CONFIG.json` on `ranks` ranks of each host and wait for success.

    On one machine this is `infra.processes.torchrun.launch`.

    Args:
        folder: the folder that all hosts share. The files of `config` and `log_path` lie in it or are shared as well.

    Raises:
        TrainerError: a machine failed, was lost or did not come; the message names it and has its last log lines.
        BadInput: a machine is set up in another way, or does not see the training's files.
    """
    if hosts.nodes == 1:
        torchrun.launch(module, config, ranks=ranks, log_path=log_path)
        return
    hosts.check_first()
    check_folder(folder)
    team, slot = Team(hosts, folder), Slot(folder, hosts.lost_after_s)
    offer = Offer(
        by=slot.me,
        hosts=hosts.hosts,
        lost_after_s=hosts.lost_after_s,
        facts=facts_here(),
        module=module,
        config=written(config, log_path),
        log=log_path,
        ranks=ranks,
        paths=tuple(sorted(path for path in {*_paths(config.model_dump()), log_path.parent} if path.exists())),
        environment={name: value for name, value in os.environ.items() if name.startswith(NETWORK_VARIABLES)},
    )
    with slot.held(offer):
        signs = team.gathered(lambda sign: _unready(sign, offer, hosts, folder), slot.beat)
        sessions = {node: sign.by.session for node, sign in signs.items()}
        offer = offer.model_copy(update={"port": free_port(hosts.hosts[0]), "sessions": sessions})
        logs = {node: _size(node_log(log_path, node)) for node in range(hosts.nodes)}
        slot.say(offer)
        process = begin(offer, 0, signs[1].address)
        try:
            _watch(process, slot, team, offer, logs)
        finally:
            process.stop()


def begin(offer: Offer, node: int, peer: str) -> GuardedProcess:
    """Start the ranks of a node, which runs this, in a training that has a port by now.

    `peer`: another node's address or name. Raises `OSError` if there is no way to it, or the ranks cannot be started.
    """
    assert offer.port is not None
    missing = {name: value for name, value in offer.environment.items() if name not in os.environ}
    return start(
        offer.module,
        offer.config,
        ranks=offer.ranks,
        log_path=node_log(offer.log, node),
        metrics=metrics_path(offer.log),
        place=Place(node, len(offer.hosts), offer.hosts[0], offer.port),
        env={**interface_towards(peer), **missing},
    )


def interface_towards(address: str) -> dict[str, str]:
    """`GLOO_SOCKET_IFNAME`: the network interface on the way to `address`, unless the environment has it.

    Gloo would take the address that this machine's name has here, which /etc/hosts often maps to loopback. NCCL chooses
    well by itself.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return {}
    own = own_address(address)
    named = [name for name, found in psutil.net_if_addrs().items() if any(each.address == own for each in found)]
    return {"GLOO_SOCKET_IFNAME": named[0]} if named else {}


def own_address(host: str) -> str:
    """This machine's address on the way to another. Nothing is sent. Raises `OSError` if there is no way."""
    family, kind, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as trial:
        trial.connect(target)
        return str(trial.getsockname()[0])


def free_port(host: str) -> int:
    """A port of this machine that is free now, at the family of addresses that `host` has."""
    family, kind, _, _, target = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as trial:
        trial.bind(target)
        return int(trial.getsockname()[1])


def _unready(sign: Sign, offer: Offer, hosts: Hosts, folder: Path) -> str:
    """Why an agent that is there cannot begin with the offer yet, in words; "" if it can.

    Raises:
        BadInput: it refuses.
    """
    if sign.joined != offer.by.session:
        return (
            f"its agent (process {sign.by.pid} on {sign.by.host}) writes to {folder / FOLDER}, but has not taken up "
            "this training: it does not see what is written here, or has not ended its last one"
        )
    if sign.refused:
        raise BadInput(f"{hosts.title(sign.node)} refuses: {sign.refused}")
    return ""


def _paths(value: Any) -> Iterator[Path]:
    """All paths in plain data."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _paths(item)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _watch(process: GuardedProcess, slot: Slot, team: Team, offer: Offer, logs: Mapping[int, int]) -> None:
    """Wait until the ranks of all machines have ended with success. `logs` has the size that each log began with.

    Raises:
        TrainerError: those of one did not, or it was lost.
    """
    nodes, failed, since = range(len(offer.hosts)), dict[int, str](), 0.0
    while True:
        refuse_when_ending()
        slot.beat()
        ended = {node: _ended(node, process, team, offer) for node in nodes}
        if all(why == "" for why in ended.values()):
            return
        if not failed and any(ended.values()):
            since = time.monotonic()
        failed |= {node: why for node, why in ended.items() if why and node not in failed}
        if failed:
            waited = time.monotonic() - since
            silent = [n for n in team.nodes if ended[n] is None and not team.beaten_since(n, since)]
            victims = all(_is_cut_off(node_log(offer.log, node), logs[node]) for node in failed)
            if not silent and (not victims or waited > _CULPRIT_S):
                raise TrainerError(_failure(failed, team, offer, logs))
        time.sleep(BEAT_S)


def _ended(node: int, process: GuardedProcess, team: Team, offer: Offer) -> str | None:
    """How the ranks of a machine ended: None while they run, "" for success, else what happened."""
    if node == 0:
        status = process.poll()
    else:
        sign = team.sign(node)
        if sign and sign.by.session != offer.sessions[node]:
            return f"was lost: its agent was started again (process {sign.by.pid} on {sign.by.host})"
        if sign and sign.joined != offer.by.session:
            return f"was lost: its agent gave up, since it saw no sign of life of node 0 for {offer.lost_after_s:g} s"
        status = sign.status if sign else None
        if sign and sign.refused:
            return sign.refused
        if status is None and (why := team.lost(node)):
            return f"was lost: {why}"
    return None if status is None else f"ended with status {status}" if status else ""


def _is_cut_off(log_path: Path, start: int) -> bool:
    """Whether a log says only that another machine's rank was lost."""
    return bool(_CUT_OFF.search(cause(tail(log_path, 200, start))))


def _failure(failed: Mapping[int, str], team: Team, offer: Offer, logs: Mapping[int, int]) -> str:
    """What to say of machines that failed: the one that was the cause, with its last log lines, and the others."""

    def blame(node: int) -> tuple[bool, bool]:
        return not failed[node].startswith("was lost"), _is_cut_off(node_log(offer.log, node), logs[node])

    first, *others = sorted(failed, key=blame)
    also = "".join(
        f"; {team.hosts.title(node)} {failed[node]} as well, log: {node_log(offer.log, node)}" for node in others
    )
    words = last_log_lines(node_log(offer.log, first), logs[first])
    where = f"{offer.module} on {len(offer.hosts)} hosts with {offer.ranks} ranks each"
    return f"{where}: {team.hosts.title(first)} {failed[first]}{also}; {words}"
