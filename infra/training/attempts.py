"""The local folder of an attempt at a training, which the next attempt goes on in."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from infra.training.checkpoints import candidates, checkpoints_folder, flush

_FINISHED = "finished"


def model_path(folder: Path) -> Path:
    """Where an attempt writes the trained model."""
    return folder / "model"


@contextmanager
def attempt_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder `NAME-...` in `parent` for one attempt at a training: removed if the block succeeds, kept if it raises.

    It is that of an earlier attempt at `name`, if there is one to go on from: one that is marked as finished but was
    not published (see `finish_attempt`), else the one with the latest checkpoint. Otherwise it is new. Other folders
    of attempts that have ended, killed ones included, are removed first. Those of living attempts are locked and stay.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        # under one lock for all, so that no other process sees a new folder before it is locked
        with _locked(parent / "all"), ExitStack() as ended:
            dead: dict[Path, ExitStack] = {}
            for other in sorted(parent.glob(f"{name}-*")):
                with suppress(BlockingIOError, FileNotFoundError):
                    lock = ExitStack()
                    lock.enter_context(_locked(other, fcntl.LOCK_NB))
                    dead[other] = ended.enter_context(lock)
            folder = max(dead, key=_progress, default=None)
            if folder is None or _progress(folder) == (False, ""):
                folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
                held.enter_context(_locked(folder))
            else:
                held.enter_context(dead[folder].pop_all())
            for other in dead:
                if other != folder:
                    _remove(other)
        yield folder
        _remove(folder)


def _progress(folder: Path) -> tuple[bool, str]:
    """How far an attempt got: whether it is finished, and the name of its last checkpoint, which sorts by step."""
    last = candidates(checkpoints_folder(model_path(folder)))[:1]
    return is_finished(folder), last[0].name if last else ""


def _remove(folder: Path) -> None:
    (folder / _FINISHED).unlink(missing_ok=True)  # first: half of a folder is not a finished training
    shutil.rmtree(folder, ignore_errors=True)
    _lock_path(folder).unlink(missing_ok=True)


def finish_attempt(folder: Path) -> None:
    """Mark a training as finished, once all its files are on disk. A failure after this costs no second training."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)
    (folder / _FINISHED).touch()


def is_finished(folder: Path) -> bool:
    """Whether the training in an attempt's folder is marked as finished."""
    return (folder / _FINISHED).exists()


def _lock_path(folder: Path) -> Path:
    """The file whose lock stands for that of a folder.

    NFS locks only files that are open for writing, which a folder cannot be; and an open file would keep the folder
    from being deleted there.
    """
    return folder.parent.with_name(f".{folder.parent.name}.locks") / folder.name


@contextmanager
def _locked(folder: Path, flags: int = 0) -> Iterator[None]:
    """Hold a kernel lock for a folder, among threads and processes, until the block or the process ends."""
    path = _lock_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(descriptor)
