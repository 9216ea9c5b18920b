"""A shard's ledger: each finished request is on disk at once, so that after a crash only the others are sent again."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

log = logging.getLogger(__name__)

SYNC_EVERY = 64  # requests between two fsyncs


class LedgerError(RuntimeError):
    """The ledger belongs to another shard, is in use, or is corrupt before its last line."""


class Ledger(Mapping[str, dict[str, Any]]):
    """An append-only JSONL file: a header line with the shard's key, then one line per finished request.

    It is a mapping from request ids to records. The records stay on disk; memory holds only the position of each line.
    A torn or corrupt last line is cut off, so that its request is sent again.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        """Open or create the ledger of shard `key` (by default the file's stem), for this process alone.

        Raises:
            LedgerError: it belongs to another shard, is in use by another process, or is corrupt before its last line.
            OSError: the file cannot be opened or written.
        """
        self.path = path
        self.key = path.stem if key is None else key
        self._lines: dict[str, tuple[int, int]] = {}  # by request id: offset and length of its line
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._lock()
            self._size = self._read()
            self._unsynced = 0
            if not self._size:
                self._write(self._header())
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            raise

    def append(self, request_id: str, record: dict[str, Any]) -> None:
        """Put a finished request on disk. A failed write leaves the ledger as it was.

        Raises:
            ValueError: the request is already in the ledger, the record has no JSON form, or the ledger is closed.
            OSError: the line cannot be written (disk full, ...).
        """
        if self._fd < 0:
            raise ValueError(f"ledger {self.path} is closed")
        if request_id in self._lines:
            raise ValueError(f"ledger {self.path}: request {request_id} is already finished")
        line, start = _line({"id": request_id, "record": record}), self._size
        self._write(line)
        self._lines[request_id] = (start, len(line))
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY:
            self._sync()

    def __getitem__(self, request_id: str) -> dict[str, Any]:
        start, size = self._lines[request_id]
        record: dict[str, Any] = json.loads(os.pread(self._fd, size, start))["record"]
        return record

    def size_of(self, request_id: str) -> int:
        """Length of a finished request's line in bytes."""
        return self._lines[request_id][1]

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def close(self) -> None:
        """Flush to disk and release the file. Closing again does nothing."""
        if self._fd >= 0:
            try:
                self._sync()
            finally:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LedgerError(f"ledger {self.path} is in use by another process") from None

    def _read(self) -> int:
        """Find the position of each record, and cut off a bad last line. Returns the size in bytes of what is kept."""
        size, torn = 0, b""
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if torn:
                    raise LedgerError(f"ledger {self.path} is corrupt at line {number - 1}: delete it to start over")
                if line.endswith(b"\n") and self._take(number, line, size):
                    size += len(line)
                else:
                    torn = line
        if not size and not self._header().startswith(torn):
            raise LedgerError(f"{self.path} is not a ledger: its first line is not a ledger's header")
        if torn:
            log.warning("ledger %s: the last line is torn (%d bytes): its request is sent again", self.path, len(torn))
        if size < os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, size)
        return size

    def _take(self, number: int, line: bytes, start: int) -> bool:
        """Index the line that begins at byte `start`. Returns False if it is not a whole record."""
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if number == 1:
            if not isinstance(content, dict) or content.get("ledger") != 1 or "key" not in content:
                raise LedgerError(f"{self.path} is not a ledger: its first line is not a ledger's header")
            if content["key"] != self.key:
                raise LedgerError(f"ledger {self.path} belongs to shard {content['key']!r}, not to {self.key!r}")
            return True
        if not isinstance(content, dict) or not isinstance(content.get("id"), str):
            return False
        if not isinstance(content.get("record"), dict):
            return False
        self._lines[content["id"]] = (start, len(line))
        return True

    def _header(self) -> bytes:
        return _line({"ledger": 1, "key": self.key})

    def _write(self, line: bytes) -> None:
        try:
            rest = line
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            os.ftruncate(self._fd, self._size)  # so that the next line does not follow half a line
            reason = f"{error.strerror} (make room in BOLT_WORK_DIR and run again: finished requests are kept)"
            raise OSError(error.errno, reason, str(self.path)) from error
        self._size += len(line)

    def _sync(self) -> None:
        os.fsync(self._fd)
        self._unsynced = 0


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"
