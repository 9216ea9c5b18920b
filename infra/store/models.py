"""Models as artifacts: a folder of files, weights as safetensors only, with a manifest like a table's."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import BadInput
from infra.store.claims import claimed
from infra.store.manifest import (
    MANIFEST,
    BadArtifact,
    Counts,
    Manifest,
    Part,
    Provenance,
    Ref,
    begin,
    digest_of,
    expect,
    finish,
)
from infra.store.parts import CHUNK, check_file, check_part, copy_part, file_sha256, find
from infra.store.store import Store, StoreError

log = logging.getLogger(__name__)

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
ADAPTER = "adapter_config.json"
IS_ADAPTER = (
    f"holds an adapter ({ADAPTER}), not a whole model: merge it into its base model (PEFT's merge_and_unload) and save "
    "that"
)
IMPORTED = "imported"  # the step of imported models
RUNS = "runs"
"""The folder in a model's that trainers keep TensorBoard's files in, by transformers' custom."""
_EVENTS = "events.out.tfevents"  # how the names of these files begin


class ModelError(BadInput):
    """A folder is not a model that this project accepts; the message says why."""


def publish_model(
    store: Store,
    step: str,
    key: str,
    folder: Path,
    provenance: Provenance,
    counts: Counts = None,
    runs: Path | None = None,
) -> Ref:
    """Copy a model folder into the store as `step/key`, its manifest last. Hidden files are skipped.

    TensorBoard's files in the folder `runs` are kept beside the model: two trainings that end with the same weights
    have the same digest, although these files hold times.

    Raises:
        ModelError: the folder is missing, empty, or holds pickled weights.
        StoreError: the store fails.
    """
    files = _files(folder)
    started = begin(store, step, key)
    parts = [_upload(store, f"{step}/{key}", folder, name) for name in files]
    events = sorted(path for path in runs.rglob(f"{_EVENTS}*")) if runs else []
    beside = [_upload(store, f"{step}/{key}", path.parent, path.name, f"{RUNS}/").path for path in events]
    return finish(store, "model", step, key, [], parts, provenance, counts, started, beside)


def fetch_model(store: Store, ref: Ref, work_dir: Path) -> Path:
    """A local folder with the verified files of a model: the artifact itself, or for S3 a copy in `work_dir/models`.

    Raises:
        BadArtifact: the model is gone, was made again with other content, or a file differs from what was written.
        StoreError: the store fails.
    """
    manifest = expect(store, ref)
    if store.is_local:
        for part in manifest.parts:
            check_part(store, manifest, part)
        return store.local_path(manifest.folder)
    copies = Store(root=str((work_dir / "models").absolute()), is_local=True)
    target = copies.local_path(ref.digest)
    with _alone(target):
        if target.exists() and not _is_copy(copies, manifest):
            log.warning("%s is not a complete copy of %s; fetching it again", target, ref.uri)
            shutil.rmtree(target)
        if not target.exists():
            _download(store, manifest, target)
    return target


def import_model(store: Store, folder: Path, name: str) -> Ref:
    """Import a model folder, such as a downloaded checkpoint, into the store.

    The key is `name` (with '/' as '--') and a digest of the content, so the same files are never copied twice.

    Raises:
        ModelError: the folder is missing, has no config.json or holds pickled weights, or the name is not allowed.
        StoreError: the store fails.
    """
    key = imported_ref(store, folder, name).key
    if found := find(store, IMPORTED, key):
        return found
    with claimed(store, IMPORTED, key):
        return find(store, IMPORTED, key) or publish_model(
            store, IMPORTED, key, folder, Provenance(config={"name": name, "origin": folder.name})
        )


def imported_ref(store: Store, folder: Path, name: str) -> Ref:
    """The reference that `import_model` would return, without copying anything. Raises `ModelError`."""
    plain = name.replace("/", "--")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", plain):
        raise ModelError(f"model name {name!r}: use letters, digits, '.', '_', '-' and '/'")
    files = model_files(folder)
    digest = digest_of("model", [], [_part(folder, file) for file in files])
    key = f"{plain}-{digest[:16]}"
    return Ref(kind="model", step=IMPORTED, key=key, uri=store.uri(IMPORTED, key), digest=digest, rows=len(files))


def model_files(folder: Path) -> list[str]:
    """The files of a transformers checkpoint in a local folder, sorted. Hidden ones do not count.

    Raises:
        ModelError: the folder is missing, has no config.json or holds pickled weights.
    """
    files = _files(folder)
    if "config.json" not in files:
        raise ModelError(
            f"model folder {folder} {IS_ADAPTER}"
            if ADAPTER in files
            else f"model folder {folder} has no config.json: is it a transformers checkpoint?"
        )
    return files


def _files(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ModelError(f"model folder {folder} does not exist or is not a folder")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    files = sorted(
        path.as_posix()
        for path in paths
        if not any(part.startswith(".") for part in path.parts) and not path.name.startswith(_EVENTS)
    )
    if pickles := [file for file in files if Path(file).suffix.lower() in PICKLES]:
        raise ModelError(
            f"model folder {folder} holds pickled files, which can run code when loaded: {', '.join(pickles)}. "
            "Only safetensors are accepted: save with safe_serialization, and delete what is not needed to load the "
            "model"
        )
    files = [file for file in files if file != MANIFEST]
    if not files:
        raise ModelError(f"model folder {folder} is empty")
    return files


def _part(folder: Path, name: str) -> Part:
    path = folder / name
    return Part(path=name, rows=1, bytes=path.stat().st_size, sha256=file_sha256(path))


def _upload(store: Store, artifact: str, folder: Path, name: str, below: str = "") -> Part:
    """Copy the file `name` of a local folder to the folder `below` (with "/" at its end) of an artifact."""
    with (folder / name).open("rb") as source, store.open_write(f"{artifact}/{below}{name}") as sink:
        shutil.copyfileobj(source, sink, CHUNK)
        return Part(path=f"{below}{name}", rows=1, bytes=sink.size, sha256=sink.sha256())


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Let one thread or process of this machine at a time handle the copy `target`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f".{target.name}.lock").open("w")
    except OSError as error:
        raise StoreError(f"cannot copy model to {target}: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_copy(copies: Store, manifest: Manifest) -> bool:
    """Whether a copy is complete. A file that was hashed in this process and has not changed is not hashed again."""
    try:
        for part in manifest.parts:
            check_file(copies, f"{manifest.digest}/{part.path}", part)
    except BadArtifact:
        return False
    return True


def _download(store: Store, manifest: Manifest, target: Path) -> None:
    """Copy the model to `target`, which appears whole; what a killed process left of it is deleted first."""
    unfinished = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for part in manifest.parts:
            path = unfinished / part.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                copy_part(store, manifest, part, file)
                file.flush()
                os.fsync(file.fileno())
        unfinished.rename(target)
    except OSError as error:
        raise StoreError(f"cannot copy model {store.uri(manifest.folder)} to {target}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
