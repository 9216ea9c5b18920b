"""Digests of the user's input files and prompts, for cache keys, and local copies of input artifacts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from infra.errors import BadInput
from infra.store.manifest import Ref, expect
from infra.store.models import fetch_model
from infra.store.parts import file_sha256
from infra.store.store import Store
from infra.text.templates import text_of


@runtime_checkable
class ReadsFiles(Protocol):
    """A configuration that depends on more than the text files named by its fields of type `Path`."""

    def contents(self) -> str:
        """Digest of everything that the configuration's paths and addresses refer to."""


def digest_of_files(paths: Sequence[Path]) -> str:
    """sha256 (hex) over the files' names and contents, in the given order; their folders do not count.

    Raises:
        BadInput: a file does not exist; the text has its path.
    """
    total = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            raise BadInput(f"input file {path} does not exist; relative paths start at {Path.cwd()}")
        total.update(f"{path.name}:{file_sha256(path)}\n".encode())
    return total.hexdigest()


def file_digest(path: Path, where: str) -> str:
    """A text file's name and the sha256 (hex) of its text, which this process reads only once (`text_of`).

    `where` names the argument that holds the path.

    Raises:
        BadInput: the file does not exist, or is not UTF-8 text.
    """
    try:
        return f"{path.name} {hashlib.sha256(text_of(path).encode()).hexdigest()}"
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(f"{where}: no file {path}; relative paths start at {Path.cwd()}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: {path} is not UTF-8 text ({error}): save it as UTF-8") from None


def artifact_parts(store: Store, table: Ref, work_dir: Path) -> tuple[Path, ...]:
    """Local paths of a table's Parquet parts, in order; files that the manifest does not list are ignored.

    If the store is remote, the table is downloaded first.

    Raises as `fetch_model`.
    """
    folder = fetch_model(store, table, work_dir)
    return tuple(folder / part.path for part in expect(store, table).parts)
