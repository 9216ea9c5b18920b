"""Digests of the user's input files, for cache keys."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from infra.manifest import Ref
from infra.models import fetch_model
from infra.store import Store


def digest_of_files(paths: Sequence[Path]) -> str:
    """sha256 (hex) over the files' names and contents, in the order given; where they lie does not count.

    Raises:
        FileNotFoundError: a file is missing; the text names it.
    """
    total = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"input file {path} does not exist; relative paths start at {Path.cwd()}")
        with path.open("rb") as file:
            total.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def artifact_parts(store: Store, table: Ref, work_dir: Path) -> tuple[Path, ...]:
    """Local paths of a table's Parquet parts in order, fetched if the store is remote. Raises as `fetch_model`."""
    return tuple(sorted(fetch_model(store, table, work_dir).glob("part-*.parquet")))
