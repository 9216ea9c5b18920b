"""The ledger of a shard that is being made: a local file, and where the store is elsewhere a copy of it there.

The copy lets another machine go on where this one is lost. It is brought up to date every `EVERY_S` seconds and at the
end, in files of its own for each process (`ledgers/STEP-KEY/*.jsonl`), and taken in when the ledger is opened.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from infra.serving.ledger import Ledger, LedgerError
from infra.store.store import Store, StoreError

log = logging.getLogger(__name__)

FOLDER = "ledgers"
EVERY_S = 60.0  # what the loss of a machine costs at most, plus the time of an upload
PIECE = 8 * 2**20  # bytes of a file of the copy, about


@contextmanager
def shard_ledger(store: Store, work_dir: Path, step: str, key: str) -> Iterator[Ledger]:
    """The ledger of the artifact STEP/KEY, for this process alone. Delete its file in the block when the artifact is
    whole: the copy goes with it.

    Raises:
        LedgerError: as `Ledger`, or the copy in the store is corrupt.
        StoreError: the copy cannot be read. One that cannot be written is told in the log; the local file has it all.
    """
    with Ledger(work_dir / FOLDER / f"{step}-{key}.jsonl", key) as ledger:
        if store.is_local:
            yield ledger
            return
        copied = _taken_in(ledger, store)
        over = threading.Event()
        copying = threading.Thread(target=_keep_copied, args=(ledger, store, copied, over), name="ledger", daemon=True)
        copying.start()
        try:
            yield ledger
        finally:
            over.set()
            copying.join()
            if not ledger.path.exists():
                _drop(store, ledger)


def places(store: Store, ledger: Ledger) -> str:
    """What a person deletes to have a shard asked from its start."""
    return str(ledger.path) if store.is_local else f"{ledger.path} and {store.uri(_folder(ledger))}"


def _drop(store: Store, ledger: Ledger) -> None:
    try:
        for path in store.list(_folder(ledger)):
            store.delete(path)
    except StoreError as error:
        log.warning("%s is not needed any more and could not be deleted: %s", store.uri(_folder(ledger)), error)


def _folder(ledger: Ledger) -> str:
    return f"{FOLDER}/{ledger.path.stem}"


def _taken_in(ledger: Ledger, store: Store) -> set[str]:
    """Append what the copy has and the ledger lacks; the requests that the copy has."""
    found: set[str] = set()
    for path in store.list(_folder(ledger)):
        for number, line in enumerate(store.read_bytes(path).split(b"\n")[:-1], 1):
            try:
                content = json.loads(line)
                request_id, record = str(content["id"]), dict(content["record"])
            except (ValueError, KeyError, TypeError) as error:
                raise LedgerError(f"{store.uri(path)} is corrupt at line {number}: delete it and run again") from error
            if request_id not in ledger:
                ledger.append(request_id, record)
            found.add(request_id)
    return found


def _keep_copied(ledger: Ledger, store: Store, copied: set[str], over: threading.Event) -> None:
    mine, number, ended = uuid4().hex[:8], 0, False
    while not ended:
        ended = over.wait(EVERY_S)
        if not ledger.path.exists():  # done with
            return
        try:
            for piece in _pieces(ledger, copied):
                lines = (json.dumps({"id": each, "record": ledger[each]}, separators=(",", ":")) for each in piece)
                path = f"{_folder(ledger)}/{mine}-{number:06}.jsonl"
                store.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
                copied.update(piece)
                number += 1
        except StoreError as error:
            log.warning("ledger %s is not copied to the store for now: %s", ledger.path, error)


def _pieces(ledger: Ledger, copied: set[str]) -> Iterator[list[str]]:
    """The requests that the copy lacks, in pieces of about `PIECE` bytes."""
    held, size = list[str](), 0
    for request_id in [each for each in list(ledger) if each not in copied]:
        held.append(request_id)
        size += ledger.size_of(request_id)
        if size >= PIECE:
            yield held
            held, size = [], 0
    if held:
        yield held
