"""Where an artifact came from: its inputs, and theirs, back to the sources, read from the manifests."""

from __future__ import annotations

from infra.manifest import BadArtifact, Manifest, Ref, load
from infra.store import Store


def lineage(store: Store, artifact: Ref | tuple[str, str]) -> str:
    """A text tree, one artifact a line: step/key, rows or files, digest; its inputs below it.

    An input that is gone, torn or since made again is marked so. Raises `StoreError` when the store fails.
    """
    step, key = (artifact.step, artifact.key) if isinstance(artifact, Ref) else artifact
    digest = artifact.digest if isinstance(artifact, Ref) else None
    return "\n".join(_lines(store, step, key, digest, seen=set()))


def _lines(store: Store, step: str, key: str, digest: str | None, seen: set[str]) -> list[str]:
    folder = f"{step}/{key}"
    try:
        manifest = load(store, step, key)
    except BadArtifact:
        return [f"{folder}  (its manifest is torn)"]
    if manifest is None:
        return [f"{folder}  (gone)"]
    line = _describe(manifest) + ("  (made again since)" if digest not in (None, manifest.digest) else "")
    if folder in seen and manifest.inputs:
        return [f"{line}  (inputs as above)"]
    seen.add(folder)
    lines = [line]
    for count, (name, ref) in enumerate(sorted(manifest.inputs.items()), 1):
        last = count == len(manifest.inputs)
        head, *below = _lines(store, ref.step, ref.key, ref.digest, seen)
        lines.append(f"{'└─' if last else '├─'} {name}: {head}")
        lines += [f"{'  ' if last else '│ '} {line}" for line in below]
    return lines


def _describe(manifest: Manifest) -> str:
    unit = "rows" if manifest.kind == "table" else "files"
    return f"{manifest.folder}  {manifest.rows:,} {unit}  sha256 {manifest.digest[:12]}"
