"""The contents of an artifact store: its artifacts, whether they are whole, and which are no longer needed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from infra.steps.keys import KEY_LENGTH
from infra.store.manifest import DELETING, MANIFEST, BadArtifact, Manifest, foreign, load
from infra.store.models import IMPORTED
from infra.store.parts import check_part
from infra.store.store import Store


@dataclass(frozen=True)
class Found:
    """An artifact's folder `step/key`, with its manifest or the reason why it has none."""

    folder: str
    manifest: Manifest | None
    problem: str = ""
    half_deleted: bool = False


def artifacts(store: Store) -> Iterator[Found]:
    """All artifacts in the store, sorted by folder: whole ones, torn ones, and those that were never finished.

    A folder without a whole manifest counts only if its name is one that this project assigns: the bucket may contain
    other folders, even some with a `manifest.json` (such as a web application's).
    """
    paths = [path.split("/") for path in store.list()]
    going = {(names[0], names[1]) for names in paths if len(names) == 3 and names[2] == DELETING}
    begun = {(names[0], names[1]) for names in paths if len(names) > 2 and _is_ours(names[0], names[1])}
    finished = {(names[0], names[1]) for names in paths if len(names) == 3 and names[2] == MANIFEST}
    for step, key in sorted(begun | finished | going):
        folder = f"{step}/{key}"
        try:
            manifest = load(store, step, key)
        except BadArtifact as error:
            if _is_ours(step, key) or (step, key) in going:
                yield Found(folder, None, str(error))
            continue
        if manifest:
            yield Found(folder, manifest)
        elif (step, key) in going:
            yield Found(folder, None, f"{store.uri(folder)} is half deleted: run `prune` again", half_deleted=True)
        else:
            yield Found(folder, None, f"{store.uri(folder)} has no {MANIFEST}: never finished")


def _is_ours(step: str, key: str) -> bool:
    form = r".+-[0-9a-f]{16}" if step == IMPORTED else rf"[0-9a-f]{{{KEY_LENGTH}}}"
    return re.fullmatch(form, key) is not None


def problems(store: Store, found: Found) -> list[str]:
    """The problems of an artifact, one line each. Checks the size and sha256 of every part against the manifest."""
    if found.manifest is None:
        return [found.problem]
    wrong = []
    for part in found.manifest.parts:
        try:
            check_part(store, found.manifest, part)
        except BadArtifact as error:
            wrong.append(str(error))
    return wrong + [f"{store.uri(path)} is not in the manifest" for path in foreign(store, found.manifest)]


def needed(manifests: Iterable[Manifest], kept: Collection[str]) -> set[str]:
    """The folders `step/key` in `kept` and all folders that they were made from, back to the sources."""
    inputs = {each.folder: [f"{ref.step}/{ref.key}" for ref in each.inputs.values()] for each in manifests}
    reached: set[str] = set()
    waiting = list(kept)
    while waiting:
        folder = waiting.pop()
        if folder not in reached:
            reached.add(folder)
            waiting += inputs.get(folder, [])
    return reached


def unneeded(store: Store, kept: Collection[str], since: datetime | None = None) -> list[Found]:
    """The artifacts that may be deleted. Kept are those in `kept`, those made since `since`, and all their inputs.

    An artifact without a manifest has no age. It is included if `since` is None, or if its deletion was begun before;
    otherwise a run may be writing it.

    Raises:
        ValueError: an artifact to keep does not exist, or the inputs of a kept artifact are unknown.
    """
    everything = list(artifacts(store))
    whole = [found.manifest for found in everything if found.manifest]
    if missing := sorted(set(kept) - {manifest.folder for manifest in whole}):
        raise ValueError(f"nothing to keep at {', '.join(missing)}: no whole artifact of that name in {store.root}")
    young = {manifest.folder for manifest in whole if since is not None and manifest.ended >= since}
    stay = needed(whole, {*kept, *young})
    if torn := sorted(each.folder for each in everything if each.folder in stay and not each.manifest):
        raise ValueError(
            f"{', '.join(torn)}: needed by a kept artifact, but without a whole manifest, so its inputs are unknown: "
            "run the flow that made it again, or keep its inputs by name and delete it"
        )
    going = [each for each in everything if each.folder not in stay]
    return [each for each in going if each.manifest or each.half_deleted or since is None]


def files_of(store: Store, found: Found) -> list[str]:
    """All files in an artifact's folder, also those that its manifest does not list."""
    return [path for path in store.list(found.folder) if path != f"{found.folder}/{DELETING}"]


def remove(store: Store, found: Found) -> int:
    """Delete an artifact. Returns the number of its files.

    Its manifest goes first, so that it no longer exists from then on, whatever happens to its parts. If that fails
    half-way, a mark stays by which `unneeded` finds the rest.
    """
    manifest, mark = f"{found.folder}/{MANIFEST}", f"{found.folder}/{DELETING}"
    paths = files_of(store, found)
    store.write_bytes(mark, b"")
    for path in sorted(paths, key=lambda path: path != manifest):
        store.delete(path)
    store.delete(mark)
    return len(paths)
