"""The one place for an offer in a shared folder: see `infra.training.signs`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from infra.processes.torchrun import TrainerError
from infra.processes.watchdog import refuse_when_ending
from infra.training.signs import BEAT_S, Offer, Pulse, Who, beat, offer_path, read, write

log = logging.getLogger(__name__)

SETTLE_S = 1.0  # two runs may take the place of a dead one at once: after this time one of them has it


class _Written(BaseModel):
    """Of an offer, whoever wrote it with whatever version of the code, only who that was."""

    by: Who


class Slot:
    """The place for the offer of this run. If another living run has it, this one waits for the end of its training."""

    def __init__(self, folder: Path, lost_after_s: float) -> None:
        self.me = Who.me()
        self._path, self._lost_after_s, self._count = offer_path(folder), lost_after_s, 0

    @contextmanager
    def held(self, offer: Offer) -> Iterator[None]:
        """The offer stands there during the block. At its end the agents end their ranks.

        Raises:
            EndingError: this process was told to end while it waited.
        """
        self._take(offer)
        try:
            yield
        finally:
            if self._is_ours():
                self._path.unlink(missing_ok=True)

    def say(self, offer: Offer) -> None:
        """Write the offer as it is now."""
        write(self._path, offer)

    def beat(self) -> None:
        """Show that this run lives. Raises `TrainerError` if another one has taken its place."""
        if not self._is_ours():
            raise TrainerError(f"{self._path}: another run took the agents, since this one seemed dead")
        self._count += 1
        beat(self._path, self._count)

    def _take(self, offer: Offer) -> None:
        while True:
            self._await_free()
            self.say(offer)
            time.sleep(SETTLE_S)
            if self._is_ours():
                return

    def _await_free(self) -> None:
        pulse, began, logged = Pulse(self._path), time.monotonic(), False
        while (holder := self._holder()) is not None:
            refuse_when_ending()
            last = pulse.last()
            if holder.is_gone() or time.monotonic() - (last or began) > self._lost_after_s:
                log.warning("%s: the run that wrote it is gone; taking its place", self._path)
                return
            if last and not logged:
                log.info("%s: the agents are training for a run on %s; waiting for its end", self._path, holder.host)
                logged = True
            time.sleep(BEAT_S)

    def _holder(self) -> Who | None:
        """Who wrote the offer that stands there; None if there is none."""
        found = read(self._path, _Written)
        return found.by if found else None

    def _is_ours(self) -> bool:
        holder = self._holder()
        return holder is not None and holder.session == self.me.session
