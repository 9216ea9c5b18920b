"""The files of an artifact, which are checked against its manifest before they are read."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from infra.store.manifest import BadArtifact, Manifest, Part, Ref, foreign, load, ref_of
from infra.store.store import Stat, Store

log = logging.getLogger(__name__)

CHUNK = 4 * 2**20  # bytes read at a time
MEMO_SIZE = 10_000

_memo: dict[tuple[str, int, str], str] = {}  # uri, size, mark -> sha256 of files already hashed in this process


def find(store: Store, step: str, key: str) -> Ref | None:
    """Find an artifact and check size and sha256 of every part; None if it does not exist or is not whole.

    What is wrong is logged. Files that were hashed and have not changed since are not hashed again in this process.

    Raises:
        StoreError: the store fails.
    """
    try:
        manifest = load(store, step, key)
        if manifest is None:
            return None
        for part in manifest.parts:
            check_part(store, manifest, part)
    except BadArtifact as error:
        log.warning("artifact %s/%s is not whole and will be made again: %s", step, key, error)
        return None
    for path in foreign(store, manifest):
        log.warning("artifact %s/%s: ignoring %s, which is not in its manifest", step, key, store.uri(path))
    return ref_of(store, manifest)


def check_part(store: Store, manifest: Manifest, part: Part) -> None:
    """Raise `BadArtifact` if a part is missing, or its size or sha256 differs from the manifest's."""
    check_file(store, f"{manifest.folder}/{part.path}", part)


def check_file(store: Store, path: str, part: Part) -> None:
    """Raise `BadArtifact` if a copy of a part, at `path` in a store, differs from the manifest's part."""
    uri, stat = store.uri(path), _sized(store, path, part)
    content = (uri, stat.size, stat.mark)
    sha256 = _memo.get(content) or _hash(store, path)
    if stat.settled:
        while len(_memo) >= MEMO_SIZE:
            _memo.pop(next(iter(_memo)))
        _memo[content] = sha256
    _same(uri, part, stat.size, sha256)


@contextmanager
def open_part(store: Store, manifest: Manifest, part: Part) -> Iterator[BinaryIO]:
    """Open a verified part for reading. From S3 it is downloaded to a temporary file once.

    Raises:
        BadArtifact: the part differs from the manifest.
    """
    if store.is_local:
        check_part(store, manifest, part)
        with store.open_read(f"{manifest.folder}/{part.path}") as file:
            yield file
    else:
        with tempfile.TemporaryFile() as file:
            copy_part(store, manifest, part, file)
            file.seek(0)
            yield file


def copy_part(store: Store, manifest: Manifest, part: Part, target: BinaryIO | Any) -> None:
    """Copy a part into an open file, hashing it on the way. Raises `BadArtifact` if it differs from the manifest."""
    copy_file(store, f"{manifest.folder}/{part.path}", part, target)


def copy_file(store: Store, path: str, part: Part, target: BinaryIO | Any) -> None:
    """Copy a part, which is at `path` in the store, as `copy_part` does. Raises `BadArtifact` if it differs."""
    _sized(store, path, part)
    sha256, size = hashlib.sha256(), 0
    for chunk in _chunks(store, path):
        sha256.update(chunk)
        size += len(chunk)
        with store.explained("copy to local disk", path):
            target.write(chunk)
    _same(store.uri(path), part, size, sha256.hexdigest())


def _sized(store: Store, path: str, part: Part) -> Stat:
    stat = store.stat(path)
    if stat is None:
        raise BadArtifact(f"part {store.uri(path)} is missing: expected {part.bytes} bytes")
    if stat.size != part.bytes:
        raise BadArtifact(
            f"part {store.uri(path)} has another size: expected {part.bytes} bytes, found {stat.size} bytes"
        )
    return stat


def _same(uri: str, part: Part, size: int, sha256: str) -> None:
    if (size, sha256) != (part.bytes, part.sha256):
        raise BadArtifact(
            f"part {uri} is corrupt: expected {part.bytes} bytes, sha256 {part.sha256}, found {size} bytes, {sha256}"
        )


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(store: Store, path: str) -> str:
    sha256 = hashlib.sha256()
    for chunk in _chunks(store, path):
        sha256.update(chunk)
    return sha256.hexdigest()


def _chunks(store: Store, path: str) -> Iterator[bytes]:
    with store.open_read(path) as file:
        while True:
            chunk = store.read_chunk(file, path, CHUNK)
            if not chunk:
                return
            yield chunk
