"""Claims on artifacts in the making: if two runs need the same artifact, one makes it and the other waits.

A claim is a small file in the store, `claims/STEP-KEY.json`, which only one process can create and which its holder
renews. A claim that is no longer renewed has lapsed. A claim whose process is known to be dead (on the same machine)
lapses at once. The time without renewal is measured by the waiting process's monotonic clock: no clock has to be right.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from infra.processes.identity import began, is_gone, machine
from infra.processes.watchdog import EndingError, ending
from infra.store.store import Store, StoreError

log = logging.getLogger(__name__)

FOLDER = "claims"
BEAT_S = 5.0  # seconds between two renewals
LAPSE_S = 60.0  # a claim not renewed for so long has lapsed
POLL_S = 1.0
SETTLE_S = 0.5  # two waiting processes may take over a dead claim at once: after this time one of them holds it


@contextmanager
def claimed(store: Store, step: str, key: str, *, beat_s: float = BEAT_S, lapse_s: float = LAPSE_S) -> Iterator[None]:
    """Hold the claim to make `step/key` during the block, and wait while another living process holds it.

    Inside the block, check again whether the artifact exists: the previous holder may have made it.

    Raises:
        StoreError: the store fails.
        EndingError: this process was told to end while it waited.
    """
    path, me = f"{FOLDER}/{step}-{key}.json", uuid4().hex
    _acquire(store, path, me, lapse_s)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(store, path, me, beat_s, ended), daemon=True, name=f"claim {path}")
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        if _holder(store, path) == me:
            store.delete(path)


def _acquire(store: Store, path: str, me: str, lapse_s: float) -> None:
    seen, since, logged, took_over = b"", time.monotonic(), False, False
    while True:
        if store.create(path, _content(me, 0)):
            if took_over:
                time.sleep(SETTLE_S)
            if not took_over or _holder(store, path) == me:
                return
            continue
        found = store.read_if_there(path)
        if found is None:  # it was just given up
            continue
        if found != seen:
            seen, since = found, time.monotonic()
        if _is_dead(found) or time.monotonic() - since > lapse_s:
            if store.read_if_there(path) == found:
                log.warning("%s: its holder is gone; taking it over", store.uri(path))
                store.delete(path)
                took_over = True
            continue
        if not logged:
            log.info("%s: another run is making this artifact; waiting for it", store.uri(path))
            logged = True
        if ending.wait(POLL_S):
            raise EndingError("this run was told to end")


def _renew(store: Store, path: str, me: str, beat_s: float, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(beat_s):
        beat += 1
        try:
            if _holder(store, path) != me:
                log.warning(
                    "%s was taken over, since this run was taken for dead; one of the two results will be kept", path
                )
                return
            store.write_bytes(path, _content(me, beat))
        except StoreError as error:
            log.warning("%s could not be renewed: %s", path, error)


def _content(me: str, beat: int) -> bytes:
    pid = os.getpid()
    known = {"holder": me, "beat": beat, "machine": machine(), "pid": pid, "began": began(pid)}
    return json.dumps(known).encode()


def _holder(store: Store, path: str) -> str | None:
    found = store.read_if_there(path)
    return _parsed(found).get("holder") if found else None


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead(content: bytes) -> bool:
    """Whether the claim's process is known to be gone, which can be said of processes on this machine only."""
    claim = _parsed(content)
    return claim.get("machine") == machine() and is_gone(machine(), int(claim["pid"]), claim["began"])
