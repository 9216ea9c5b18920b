"""Checkpoints of a training in progress, on local disk: folders that count once their manifest is there, written last.

A checkpoint is the folder `step-00000012` with the files of all ranks and a `manifest.json`. Without a whole manifest,
or if a file differs from it, the checkpoint does not exist, and the one before is used.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from infra.errors import BadInput
from infra.store.manifest import MANIFEST, Part
from infra.store.parts import file_sha256

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints that stay on disk: the last one, and the one before in case the last one is torn."""
_NAME = re.compile(r"step-(\d{8})")


class Checkpoint(BaseModel, frozen=True):
    """The manifest of a checkpoint.

    Attributes:
        step, steps: optimiser steps done, and those of the whole training.
        seconds: time spent on training until then.
        settings: what must be the same in the training that goes on from here.
        files: all files, their paths relative to the checkpoint's folder. `rows` of a file is 1.
    """

    step: int
    steps: int
    seconds: float
    settings: dict[str, Any]
    files: tuple[Part, ...]


def checkpoints_folder(output: Path) -> Path:
    """The folder of the checkpoints of the training that writes the model `output`."""
    return output.with_name(f"{output.name}.checkpoints")


def checkpoint_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:08}"


def described(folder: Path, path: str) -> Part:
    """A file of a checkpoint with its size and sha256, once its content is on disk."""
    flush(folder / path)
    return Part(path=path, rows=1, bytes=(folder / path).stat().st_size, sha256=file_sha256(folder / path))


def flush(path: Path) -> None:
    """Write what the operating system holds of a file or folder to disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finish(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the manifest, which makes the checkpoint whole. Raises `OSError`."""
    unfinished = folder / f".{MANIFEST}"
    unfinished.write_text(checkpoint.model_dump_json(indent=1))
    flush(unfinished)
    unfinished.rename(folder / MANIFEST)
    flush(folder)
    flush(folder.parent)


def candidates(parent: Path) -> list[Path]:
    """The folders in `parent` with a manifest, the last step first. Their files are not checked."""
    found = [path for path in parent.glob("step-*") if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(found, key=lambda path: path.name, reverse=True)


def newest(parent: Path) -> Path | None:
    """The last whole checkpoint in `parent`, or None. What is wrong with later ones is logged."""
    for folder in candidates(parent):
        try:
            check(folder)
        except ValueError as error:
            log.warning("%s is not whole and is not used: %s", folder, error)
        else:
            return folder
    return None


def read(folder: Path) -> Checkpoint:
    """The manifest of a checkpoint. Raises `ValueError` if it is missing or torn."""
    try:
        return Checkpoint.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise ValueError(f"{folder / MANIFEST} cannot be read: {error}") from error


def check(folder: Path) -> None:
    """Raise `ValueError` if a checkpoint's manifest is torn, or a file is missing or differs from it."""
    for file in read(folder).files:
        path = folder / file.path
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if (size := path.stat().st_size) != file.bytes:
            raise ValueError(f"{path}: expected {file.bytes} bytes, found {size}")
        if (sha256 := file_sha256(path)) != file.sha256:
            raise ValueError(f"{path}: expected sha256 {file.sha256}, found {sha256}")


def prune(parent: Path) -> None:
    """Delete all but the last `KEPT` checkpoints, and what is left of torn ones."""
    kept = set(candidates(parent)[:KEPT])
    for folder in parent.glob("step-*"):
        if folder not in kept:
            remove(folder)


def remove(folder: Path) -> None:
    """Delete a checkpoint, its manifest first, so that half of it is never taken for a whole one."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def check_settings(folder: Path, settings: dict[str, Any], places: str = "") -> None:
    """Refuse to go on from a checkpoint of a training with other settings.

    `places` are those of all the training's checkpoints, for the message; by default the folder's parent.

    Raises:
        BadInput: a setting in `settings` differs from the checkpoint's.
    """
    made = read(folder)
    if differing := {
        name: (made.settings[name], value)
        for name, value in settings.items()
        if name in made.settings and made.settings[name] != value
    }:
        said = ", ".join(f"{name} was {before!r} and is now {now!r}" for name, (before, now) in differing.items())
        raise BadInput(
            f"checkpoint {folder} (step {made.step} of {made.steps}) is of a training with other settings: {said}. Set "
            f"them back to go on from there, or delete {places or folder.parent} to start from the beginning"
        )
