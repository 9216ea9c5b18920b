"""What is in an artifact store: its artifacts, whether they are whole, and which of them nothing needs any more."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from infra.steps.keys import KEY_LENGTH
from infra.store.manifest import MANIFEST, BadArtifact, Manifest, foreign, load
from infra.store.models import IMPORTED
from infra.store.parts import check_part
from infra.store.store import Store


@dataclass(frozen=True)
class Found:
    """An artifact's folder `step/key`: its manifest, or what is wrong with it."""

    folder: str
    manifest: Manifest | None
    problem: str = ""


def artifacts(store: Store) -> Iterator[Found]:
    """Everything at `step/key` in the store, sorted: whole artifacts, torn ones, and those that were never finished.

    A folder without a whole manifest counts only where its name is one that this project gives: the store's root may
    hold more than the store, and a `manifest.json` of others (a web application's, say).
    """
    paths = [path.split("/") for path in store.list()]
    begun = {(names[0], names[1]) for names in paths if len(names) > 2 and _is_ours(names[0], names[1])}
    finished = {(names[0], names[1]) for names in paths if len(names) == 3 and names[2] == MANIFEST}
    for step, key in sorted(begun | finished):
        folder = f"{step}/{key}"
        try:
            manifest = load(store, step, key)
        except BadArtifact as error:
            if _is_ours(step, key):
                yield Found(folder, None, str(error))
            continue
        yield Found(folder, manifest, "" if manifest else f"{store.uri(folder)} has no {MANIFEST}: never finished")


def _is_ours(step: str, key: str) -> bool:
    return step == IMPORTED or re.fullmatch(rf"[0-9a-f]{{{KEY_LENGTH}}}", key) is not None


def problems(store: Store, found: Found) -> list[str]:
    """What is wrong with an artifact, a line each: every part's size and sha256 is checked against its manifest."""
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
    """The folders `step/key` in `kept` and all that they were made from, back to the sources."""
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
    """What may go: every artifact that is not in `kept`, is older than `since`, and that nothing kept was made from.

    What has no manifest has no age: it goes only where `since` is None, for a run may be writing it.

    Raises:
        ValueError: an artifact to keep is not there, or what it was made from cannot be told.
    """
    everything = list(artifacts(store))
    whole = [found.manifest for found in everything if found.manifest]
    if missing := sorted(set(kept) - {manifest.folder for manifest in whole}):
        raise ValueError(f"nothing to keep at {', '.join(missing)}: no whole artifact of that name in {store.root}")
    young = {manifest.folder for manifest in whole if since is not None and manifest.ended >= since}
    stay = needed(whole, {*kept, *young})
    if torn := sorted(each.folder for each in everything if each.folder in stay and not each.manifest):
        raise ValueError(
            f"{', '.join(torn)}: needed by what is kept, but without a whole manifest, so that what it was made from "
            "cannot be told: run the flow that made it again, or keep its inputs by name and delete it"
        )
    return [each for each in everything if each.folder not in stay and (each.manifest or since is None)]


def remove(store: Store, found: Found) -> int:
    """Delete an artifact, its manifest first: from then on it does not exist. Returns the number of files."""
    paths = store.list(found.folder)
    manifest = f"{found.folder}/{MANIFEST}"
    for path in sorted(paths, key=lambda path: path != manifest):
        store.delete(path)
    return len(paths)
