"""The artifact store: one folder tree, on local disk or S3, in which a file appears whole or not at all."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar, cast
from urllib.parse import unquote
from uuid import uuid4

from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from infra.settings import Settings
from infra.store.errors import StoreError, explain
from infra.store.s3 import s3_filesystem, uploading

__all__ = ["Sink", "Stat", "Store", "StoreError"]

log = logging.getLogger(__name__)

Paths = list[str]
P = ParamSpec("P")
R = TypeVar("R")
ATTEMPTS = 6  # of a request, and of an operation of several requests that may be repeated
LONGEST_WAIT_S = 15.0  # between two attempts
SETTLED_S = 2.0  # a local file younger than this may change again within one tick of its change time
STALE_S = 3600.0  # a temporary file untouched this long belongs to a writer that died


def _is_outage(error: BaseException) -> bool:
    return isinstance(error, StoreError) and error.transient


def repeated(method: Callable[Concatenate[Store, P], R]) -> Callable[Concatenate[Store, P], R]:
    """A store method that may be repeated: if S3 or the network fails, it is retried, and the retry is logged."""

    @functools.wraps(method)
    def trying(self: Store, *args: P.args, **kwargs: P.kwargs) -> R:
        retrying = Retrying(
            retry=retry_if_exception(_is_outage),
            stop=stop_after_attempt(self._attempts),
            wait=wait_exponential_jitter(initial=0.2, max=LONGEST_WAIT_S, jitter=0.5),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        return retrying(method, self, *args, **kwargs)

    return cast("Callable[Concatenate[Store, P], R]", trying)


@dataclass(frozen=True)
class Stat:
    """A file's size in bytes and a mark that changes with its content. `settled`: the mark is reliable."""

    size: int
    mark: str
    settled: bool


class Sink(io.RawIOBase):
    """A file that is being written to the store; its bytes are counted and hashed (sha256) on the way."""

    def __init__(self, store: Store, path: str, file: Any) -> None:
        self._store, self._path, self._file = store, path, file
        self._sha256 = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        with self._store.explained("write", self._path):
            self._file.write(data)
        self._sha256.update(data)
        count = memoryview(data).nbytes
        self.size += count
        return count

    def sha256(self) -> str:
        """Hex digest of what has been written so far."""
        return self._sha256.hexdigest()


@dataclass(frozen=True, eq=False)
class Store:
    """Files under one root. Paths are separated by '/' and relative to the root. All failures are `StoreError`."""

    root: str
    is_local: bool
    endpoint: str | None = None
    _fs: Any = field(default=None, repr=False)
    _errors: tuple[type[Exception], ...] = field(default=(OSError,), repr=False)
    _secrets: tuple[str, ...] = field(default=(), repr=False)
    _attempts: int = field(default=1, repr=False)

    @classmethod
    def open(cls, settings: Settings) -> Store:
        """Open the store that `settings` name, after a probe file was written, read and deleted (~20 s each at most).

        Raises:
            StoreError: the store cannot be used; the message says which, why, and how to fix it.
        """
        if settings.store.startswith("s3://"):
            _s3_store(settings, patient=False).check()
            return cls.for_reading(settings)
        store = cls(root=str(_local_root(settings.store)), is_local=True)
        store.check()
        return store

    @classmethod
    def for_reading(cls, settings: Settings) -> Store:
        """The S3 folder that `settings` name, without a probe: reading must not need the right to write."""
        return _s3_store(settings, patient=True)

    def check(self) -> None:
        """Write, read and delete a probe file, and check that it cannot be created twice. Raises `StoreError`."""
        self.write_bytes(probe := f"probe-{uuid4().hex}", probe.encode())
        if self.read_bytes(probe) != probe.encode():
            raise StoreError(f"artifact store {self.root}: a probe file read back differs from what was written")
        created = self.create(probe, b"created over it")
        self.delete(probe)
        if created:
            raise StoreError(
                f"artifact store {self.root}: it has no conditional writes (If-None-Match: *), so two runs could make "
                "the same artifact at once: use an endpoint that has them (AWS, MinIO, R2, Ceph, ...)"
            )

    def uri(self, *parts: str) -> str:
        """The address of a file or folder: an absolute local path, or s3://bucket/prefix/..."""
        return "/".join([self.root, *(_plain_path(part) for part in parts)])

    def local_path(self, path: str) -> Path:
        """The file's path on local disk. Raises `StoreError` if the store is not local."""
        if not self.is_local:
            raise StoreError(f"{self.uri(path)} is not on local disk")
        return Path(self.uri(path))

    @repeated
    def stat(self, path: str) -> Stat | None:
        """Size and mark of a file; None if there is no such file."""
        with self.explained("look at", path):
            try:
                if self.is_local:
                    found = self.local_path(path).stat()
                    if not self.local_path(path).is_file():
                        return None
                    settled = time.time() - found.st_ctime > SETTLED_S
                    return Stat(found.st_size, f"{found.st_ctime_ns}-{found.st_ino}", settled)
                info = self._fs.info(self.uri(path), refresh=True)
            except (FileNotFoundError, NotADirectoryError):
                return None
            tag = info.get("ETag", "")
            return Stat(info["size"], tag, bool(tag)) if info["type"] == "file" else None

    def exists(self, path: str) -> bool:
        """Whether the file exists. Folders do not count, since S3 has none."""
        return self.stat(path) is not None

    @repeated
    def read_bytes(self, path: str) -> bytes:
        """Read a whole file."""
        with self.explained("read", path):
            return self._whole(path)

    @repeated
    def read_if_there(self, path: str) -> bytes | None:
        """Read a whole file; None if there is none."""
        with self.explained("read", path):
            try:
                return self._whole(path)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _whole(self, path: str) -> bytes:
        if self.is_local:
            return self.local_path(path).read_bytes()
        return cast(
            bytes, self._fs.cat_file(self.uri(path), max_concurrency=1)
        )  # in one request: several would ask for the size first

    @repeated
    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        with self.explained("write", path):
            if self.is_local:
                with _replacing(self.local_path(path)) as file:
                    file.write(data)
            else:
                self._fs.pipe_file(self.uri(path), data)

    @repeated
    def create(self, path: str, data: bytes) -> bool:
        """Write a small file unless it exists. If several processes try at once, one gets True and the others False.

        On S3 this is a conditional write (`If-None-Match: *`), which AWS, MinIO, R2 and others have.
        """
        with self.explained("create", path):
            try:
                if self.is_local:
                    with _replacing(self.local_path(path), place=os.link) as file:
                        file.write(data)
                else:
                    self._fs.pipe_file(self.uri(path), data, mode="create")
            except OSError as error:
                if not _already_there(error):
                    raise
                return self.read_if_there(path) == data  # our own, if the answer to a first attempt was lost
        return True

    @repeated
    def open_read(self, path: str) -> BinaryIO:
        """Open a file for reading; it is seekable, and streamed from S3."""
        with self.explained("open", path):
            return cast(BinaryIO, self.local_path(path).open("rb") if self.is_local else self._fs.open(self.uri(path)))

    @repeated
    def read_chunk(self, file: BinaryIO, path: str, size: int) -> bytes:
        """Read the next bytes, at most `size`, of the open file `path`; empty at its end."""
        with self.explained("read", path):
            return file.read(size)  # from S3, a failed read has not moved the file's position

    @contextmanager
    def open_write(self, path: str) -> Iterator[Sink]:
        """A sink whose file appears if the block succeeds. If it raises, nothing appears."""
        target = _replacing(self.local_path(path)) if self.is_local else uploading(self._fs, self.uri(path))
        with ExitStack() as stack:
            with self.explained("create", path):
                file = stack.enter_context(target)
            yield Sink(self, path, file)
            with self.explained("finish writing", path):
                stack.close()

    def list(self, prefix: str = "") -> Paths:
        """The files below a folder at any depth, sorted, relative to the root, without those still being written.

        What this project cannot have written is left out: the empty objects `folder/` with which S3 consoles mark a
        folder (Hadoop's are `folder_$folder$`), and other names that are no plain paths.
        """
        found = self._files(prefix)
        return [path for path in found if _is_plain(path) and not (_is_temporary(path) or path.endswith("_$folder$"))]

    @repeated
    def delete(self, path: str) -> None:
        """Delete a file, if it exists."""
        with self.explained("delete", path):
            if self.is_local:
                self.local_path(path).unlink(missing_ok=True)
            else:
                self._fs.rm_file(self.uri(path))

    def sweep(self, prefix: str) -> None:
        """Delete temporary files that dead writers left below a folder (untouched for an hour; local disk only)."""
        for path in self._files(prefix) if self.is_local else []:
            if _is_temporary(path):
                with self.explained("sweep", path), suppress(FileNotFoundError):  # if its writer has just finished
                    if time.time() - self.local_path(path).stat().st_mtime > STALE_S:
                        self.delete(path)

    @repeated
    def _files(self, prefix: str) -> Paths:
        with self.explained("list", prefix):
            start = self.uri(prefix) if prefix else self.root
            if self.is_local:
                walk = os.walk(start, onerror=_unless_gone, followlinks=True)
                found = [str(Path(folder, name)) for folder, _, names in walk for name in names]
            else:
                try:
                    found = [f"s3://{name}" for name in self._fs.find(start)]
                except FileNotFoundError:
                    found = []
        return sorted(path.removeprefix(self.root + "/") for path in found if path.startswith(start + "/"))

    @contextmanager
    def explained(self, doing: str, path: str) -> Iterator[None]:
        """Turn what the disk or S3 raises in the block into a `StoreError` without secrets and chained errors."""
        try:
            yield
        except self._errors as error:
            advice = explain(error)
            where = f"artifact store {self.root}" + (f" at {self.endpoint}" if self.endpoint else "")
            said = f"{type(error).__name__}: {error}"
            for secret in self._secrets:
                said = said.replace(secret, "***")
            text = f"{where}: cannot {doing} {path or 'its root'}: {advice.what}. {advice.fix} [{said}]"
            raise StoreError(text, transient=advice.transient) from None


def _already_there(error: OSError) -> bool:
    """Whether an exclusive write failed because the file exists: by `os.link`, or by S3's answer."""
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    linked = isinstance(error, FileExistsError) and error.filename2 is not None
    return linked or code in ("PreconditionFailed", "ConditionalRequestConflict", "412")


def _is_plain(path: str) -> bool:
    odd = path.startswith("/") or "\\" in path or not path.isprintable() or {"", ".", ".."} & set(path.split("/"))
    return not odd and path == str(PurePosixPath(path))


def _plain_path(path: str) -> str:
    if not _is_plain(path):
        raise StoreError(f"{path!r} is not a plain relative path: expected 'folder/name' without '..' and leading '/'")
    return path


def _is_temporary(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return name.startswith(".") and name.endswith(".tmp")


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def _local_root(store: str) -> Path:
    return Path(unquote(store[7:]) if store.startswith("file://") else store).expanduser().absolute()


@contextmanager
def _replacing(target: Path, place: Callable[[Path, Path], None] = os.replace) -> Iterator[BinaryIO]:
    """A temporary file beside `target` that takes its place, flushed to disk, if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _s3_store(settings: Settings, *, patient: bool) -> Store:
    attempts = ATTEMPTS if patient else 1
    files, errors = s3_filesystem(settings, attempts, patient=patient)
    return Store(
        root="s3://" + settings.store.removeprefix("s3://").strip("/"),
        is_local=False,
        endpoint=settings.endpoint_url,
        _fs=files,
        _errors=errors,
        _secrets=tuple(key.get_secret_value() for key in (settings.access_key_id, settings.secret_access_key) if key),
        _attempts=attempts,
    )
