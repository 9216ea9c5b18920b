"""The ledger of a shard in progress: a local file, and a copy of it in the store if the store is remote.

With the copy, another machine can resume the shard if this one is lost. The copy is updated every `EVERY_S` seconds and
at the end. Each process writes its own files of it (`ledgers/STEP-KEY/*.jsonl`). Opening the ledger reads all of them.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from infra.serving.ledger import Ledger, LedgerError
from infra.store.store import Store, StoreError

log = logging.getLogger(__name__)

FOLDER = "ledgers"
EVERY_S = 10.0  # the most that the loss of a machine costs, plus the time of an upload
PIECE = 8 * 2**20  # approximate size in bytes of each file of the copy


@contextmanager
def shard_ledger(store: Store, work_dir: Path, step: str, key: str) -> Iterator[Ledger]:
    """The ledger of the artifact STEP/KEY, for this process alone.

    Once the artifact is whole, delete the ledger's file inside the block: its copy is deleted too.

    Raises:
        LedgerError: as `Ledger`, or the copy in the store is corrupt.
        StoreError: the copy cannot be read. A failure to write it is only logged, since the local file is complete.
    """
    with Ledger(work_dir / FOLDER / f"{step}-{key}.jsonl", key) as ledger:
        if store.is_local:
            yield ledger
            return
        copied = _merge_copy(ledger, store)
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
    """The places, for a message, that the user deletes to make a shard from scratch."""
    return str(ledger.path) if store.is_local else f"{ledger.path} and {store.uri(_folder(ledger))}"


def _drop(store: Store, ledger: Ledger) -> None:
    try:
        for path in _copies(store, ledger):
            store.delete(path)
    except StoreError as error:
        log.warning("%s is no longer needed, but could not be deleted: %s", store.uri(_folder(ledger)), error)


def _folder(ledger: Ledger) -> str:
    return f"{FOLDER}/{ledger.path.stem}"


def _copies(store: Store, ledger: Ledger) -> list[str]:
    """The files of the copy; those that others put beside them are left alone."""
    ours = re.escape(_folder(ledger)) + r"/[0-9a-z]+-\d{6,}\.jsonl"
    return [path for path in store.list(_folder(ledger)) if re.fullmatch(ours, path)]


def _merge_copy(ledger: Ledger, store: Store) -> set[str]:
    """Append what only the copy has to the ledger. Returns the ids of all requests in the copy."""
    found: set[str] = set()
    for path in _copies(store, ledger):
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
    """Copy new requests every `EVERY_S` seconds, and once more when `over` is set."""
    mine, number, ended = uuid4().hex[:8], 0, False
    while not ended:
        ended = over.wait(EVERY_S)
        if not ledger.path.exists():  # the artifact is whole
            return
        try:
            for piece in _pieces(ledger, copied):
                lines = (json.dumps({"id": each, "record": ledger[each]}, separators=(",", ":")) for each in piece)
                path = f"{_folder(ledger)}/{mine}-{number:06}.jsonl"
                store.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
                copied.update(piece)
                number += 1
        except StoreError as error:
            log.warning("ledger %s could not be copied to the store, will try again: %s", ledger.path, error)


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
