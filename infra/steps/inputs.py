"""Digests of the user's input files and prompts, for cache keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from infra.store.manifest import Ref, expect
from infra.store.models import fetch_model
from infra.store.store import Store
from infra.text.templates import text_of


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


def digest_of_prompts(*templates: Path) -> str:
    """sha256 (hex) over prompt templates as this process asks with them, in the order given. Raises `OSError`."""
    return digest_of_texts([text_of(path) for path in templates])


def digest_of_texts(texts: Sequence[str]) -> str:
    """sha256 (hex) over texts, in the order given."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def artifact_parts(store: Store, table: Ref, work_dir: Path) -> tuple[Path, ...]:
    """Local paths of a table's Parquet parts in order, fetched if the store is remote; other files are no parts.

    Raises as `fetch_model`.
    """
    folder = fetch_model(store, table, work_dir)
    return tuple(folder / part.path for part in expect(store, table).parts)
