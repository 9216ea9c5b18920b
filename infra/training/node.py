"""`python -m infra.training.node --node-rank N --folder SHARED`: the agent of a machine that helps to train.

It waits for trainings that a flow on node 0 offers in the shared folder (`BOLT_WORK_DIR` there) and takes part in each
with a torchrun of its own. Its ranks end with the training, with the flow and with the agent. Between trainings it
waits. It needs no address of another machine, and no machine needs a way to log in to it.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from infra.errors import BadInput
from infra.processes.watchdog import GuardedProcess
from infra.settings import Settings
from infra.training.nodes import begin, own_address
from infra.training.signs import (
    BEAT_S,
    FOLDER,
    Facts,
    Offer,
    Pulse,
    Sign,
    Who,
    beat,
    check_folder,
    difference,
    facts_here,
    node_log,
    offer_path,
    read,
    sign_path,
    write,
)

log = logging.getLogger("node")

TAKEN_S = 5.0
"""For how long a new agent looks whether another one of the same number lives."""


class Agent:
    """The agent of one node: what it says of itself, and the ranks of the training that it is in.

    Raises:
        BadInput: the folder cannot be written, or a living agent has this number.
    """

    def __init__(self, node: int, folder: Path) -> None:
        check_folder(folder)
        self.folder, self._path, self._count = folder, sign_path(folder, node), 0
        self.sign = Sign(by=Who.me(), node=node, facts=facts_here())
        self._check_number()
        self.offer: Offer | None = None  # the training that it has taken up
        self.process: GuardedProcess | None = None
        self._offers, self._warned = Pulse(offer_path(folder)), ""
        self._say()

    def _check_number(self) -> None:
        try:
            other = read(self._path, Sign)
        except BadInput:  # left there by another version of the code
            other = None
        pulse, until = Pulse(self._path), time.monotonic() + TAKEN_S
        while other and not other.left and not other.by.is_gone() and time.monotonic() < until:
            time.sleep(BEAT_S)
            if pulse.last():
                raise BadInput(
                    f"node {self.sign.node} of {self.folder} has an agent already, process {other.by.pid} on "
                    f"{other.by.host}: end it, or give another --node-rank"
                )

    def _say(self, **changes: Any) -> None:
        self.sign = self.sign.model_copy(update=changes)
        write(self._path, self.sign)

    def step(self) -> None:
        """Beat, and do what the offer in the shared folder asks for. Raises `OSError` if nothing can be said there."""
        mine = self.offer
        try:
            self._count += 1
            beat(self._path, self._count)
            offer = read(offer_path(self.folder), Offer)
        except BadInput as error:
            self.warn(str(error))
            offer = None
        except OSError as error:  # the folder is away: no news, until the run counts as lost
            self.warn(str(error))
            offer = mine
        heard = self._offers.beats(mine.lost_after_s if mine else offer.lost_after_s if offer else 0)
        lives = offer is not None and heard and not offer.by.is_gone()
        if mine and not (offer and offer.by.session == mine.by.session and lives):
            log.info("the training is over" if not offer or lives else f"its run on {mine.by.host} is gone")
            self.leave()
        elif self.process:
            if (status := self.process.poll()) is not None:
                log.info("the ranks ended with status %d", status)
                self.process.stop()
                self.process = None
                self._say(status=status)
        elif mine and offer:
            if self.sign.status is None and not self.sign.refused:
                self._begin_if_told(offer)
        elif offer and lives and offer.port is None:
            self._join(offer)

    def warn(self, text: str) -> None:
        """Log a warning, once for as long as it stays the same."""
        if text != self._warned:
            log.warning("%s", text)
        self._warned = text

    def _join(self, offer: Offer) -> None:
        log.info("a run on %s offers %s on %s", offer.by.host, offer.module, ", ".join(offer.hosts))
        self.offer, facts, address = offer, facts_here(), ""
        refused = self._objection(offer, facts)
        if not refused:
            try:
                address = own_address(offer.hosts[0])
            except OSError as error:
                refused = f"the first host, {offer.hosts[0]!r}, cannot be reached from {self.sign.by.host}: {error}"
        if refused:
            log.error("refused: %s", refused)
        self._say(joined=offer.by.session, refused=refused, address=address, status=None, facts=facts)

    def _objection(self, offer: Offer, facts: Facts) -> str:
        """Why this machine cannot take part, in words; "" if it can."""
        node, host = self.sign.node, self.sign.by.host
        if node >= len(offer.hosts):
            return f"training.hosts has {len(offer.hosts)} hosts, so there is no node {node} (the agent on {host})"
        if differs := difference(facts, offer.facts):
            return f"{host} must be set up as the flow's machine is, but it has {differs}"
        if unseen := [path for path in offer.paths if not path.exists()]:
            shown = ", ".join(map(str, unseen))
            return f"{shown} cannot be seen on {host}: BOLT_WORK_DIR and a local BOLT_STORE must be shared by all hosts"
        return ""

    def _begin_if_told(self, offer: Offer) -> None:
        if offer.port is None or offer.sessions.get(self.sign.node) != self.sign.by.session:
            return
        log_path = node_log(offer.log, self.sign.node)
        try:
            with log_path.open("a") as out:
                out.write(f"{offer.module}: {offer.ranks} ranks of node {self.sign.node} on {self.sign.by.host}\n")
            self.process = begin(offer, self.sign.node, offer.hosts[0])
        except OSError as error:
            log.warning("cannot begin: %s", error)
            self._say(status=1, refused=f"cannot begin: {error}")
            return
        log.info("training with %d ranks, log: %s", offer.ranks, log_path)

    def leave(self) -> None:
        """End the ranks and forget the training."""
        if self.process:
            self.process.stop()
        self.process = self.offer = None
        self._say(joined=None, refused="", status=None)

    def close(self) -> None:
        """End the ranks and say that this agent is gone."""
        if self.process:
            self.process.stop()
        self._say(left=True)


def serve(node: int, folder: Path) -> NoReturn:
    """Take part in trainings until this process is told to end. Raises `BadInput` as `Agent`."""
    agent = Agent(node, folder)
    log.info("node %d on %s waits for trainings in %s", node, agent.sign.by.host, folder / FOLDER)
    try:
        while True:
            try:
                agent.step()
            except OSError as error:
                agent.warn(str(error))
            time.sleep(BEAT_S)
    finally:
        agent.close()


def _told_to_end(signum: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signum)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.training.node", description="Help to train on this machine.")
    parser.add_argument("--node-rank", type=int, required=True, help="this machine's place in training.hosts, from 1")
    parser.add_argument(
        "--folder", type=Path, help="BOLT_WORK_DIR of the flow, which all machines share; default: ours"
    )
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, _told_to_end)
    try:
        if given.node_rank < 1:
            raise BadInput("--node-rank: node 0 runs the flow itself; agents are numbered from 1")
        serve(given.node_rank, (given.folder or Settings.load().work_dir).resolve())
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
