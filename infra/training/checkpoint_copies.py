"""Copies of a training's checkpoints in the artifact store, so that another host can go on if this one is lost.

They are in `checkpoints/STEP-KEY/step-00000012`, as on disk: the manifest is written last, and files are compared with
it before they are used. Once the model is published, they are deleted.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from infra.store.manifest import MANIFEST, BadArtifact
from infra.store.parts import CHUNK, copy_file
from infra.store.store import Store, StoreError
from infra.training.checkpoints import Checkpoint, candidates, newest, read, remove

log = logging.getLogger(__name__)

FOLDER = "checkpoints"


def place(step: str, key: str) -> str:
    """The folder in the store of the checkpoints of the training STEP/KEY."""
    return f"{FOLDER}/{step}-{key}"


def latest(store: Store, step: str, key: str, parent: Path) -> Path | None:
    """The last whole checkpoint of a training, in the local folder `parent`, or None.

    One in the store is copied to `parent` if it is of a later step than those there.

    Raises:
        StoreError: the store fails.
    """
    local = newest(parent)
    for name in _copies(store, step, key):
        if local and local.name >= name:
            break
        if _fetched(store, f"{place(step, key)}/{name}", parent / name):
            return parent / name
    return local


def _copies(store: Store, step: str, key: str) -> list[str]:
    """The names of the checkpoints in the store that have a manifest, the last step first."""
    paths = (PurePosixPath(path) for path in store.list(place(step, key)))
    return sorted((path.parent.name for path in paths if path.name == MANIFEST), reverse=True)


def _fetched(store: Store, source: str, target: Path) -> bool:
    """Copy a checkpoint from the store. False, and a warning, if it is not whole. Raises `StoreError`."""
    remove(target)
    try:
        manifest = store.read_bytes(f"{source}/{MANIFEST}")
        for file in Checkpoint.model_validate_json(manifest).files:
            with store.explained("copy to local disk", f"{source}/{file.path}"):
                (target / file.path).parent.mkdir(parents=True, exist_ok=True)
                with (target / file.path).open("wb") as local:
                    copy_file(store, f"{source}/{file.path}", file, local)
    except (ValidationError, BadArtifact) as error:
        log.warning("%s is not whole and is not used: %s", store.uri(source), error)
        remove(target)
        return False
    (target / MANIFEST).write_bytes(manifest)
    log.info("checkpoint of step %d copied from %s", read(target).step, store.uri(source))
    return True


@contextmanager
def kept_copied(store: Store, step: str, key: str, parent: Path, minutes: float) -> Iterator[None]:
    """Copy the last checkpoint in `parent` to the store every `minutes` during the block, in a thread of its own.

    A copy that fails is logged, and tried again with the next checkpoint.
    """
    over = threading.Event()

    def copy() -> None:
        while not over.wait(max(1.0, 60 * minutes)):
            try:
                copy_last(store, step, key, parent)
            except (StoreError, OSError, ValueError) as error:
                log.warning("the last checkpoint of %s could not be copied to the store: %s", step, error)

    copying = threading.Thread(target=copy, daemon=True, name=f"checkpoints {step}")
    copying.start()
    try:
        yield
    finally:
        over.set()
        copying.join()


def copy_last(store: Store, step: str, key: str, parent: Path) -> None:
    """Copy the last checkpoint to the store, unless it is there, and delete older copies.

    Raises:
        StoreError: the store fails.
        OSError, ValueError: the checkpoint cannot be read.
    """
    for folder in candidates(parent)[:1]:
        target = f"{place(step, key)}/{folder.name}"
        if folder.name in _copies(store, step, key):
            return
        held = parent / f".copying-{folder.name}"
        shutil.rmtree(held, ignore_errors=True)
        try:
            # links, since the trainer may delete the checkpoint during the upload
            shutil.copytree(folder, held, copy_function=os.link)
            for name in [*(file.path for file in read(held).files), MANIFEST]:
                with (held / name).open("rb") as source, store.open_write(f"{target}/{name}") as sink:
                    shutil.copyfileobj(source, sink, CHUNK)
        finally:
            shutil.rmtree(held, ignore_errors=True)
        drop(store, step, key, but=folder.name)


def drop(store: Store, step: str, key: str, but: str = "") -> None:
    """Delete the copies of a training's checkpoints, except `but`, manifests first. A failure is only logged."""
    try:
        paths = [path for path in store.list(place(step, key)) if PurePosixPath(path).parts[2] != but]
        for path in sorted(paths, key=lambda path: not path.endswith(f"/{MANIFEST}")):
            store.delete(path)
    except StoreError as error:
        log.warning("%s is no longer needed, but could not be deleted: %s", store.uri(place(step, key)), error)
