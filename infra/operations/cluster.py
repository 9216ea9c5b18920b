"""The options of an installation on Kubernetes, and what can be wrong with them."""

from __future__ import annotations

import posixpath
import re
from typing import NamedTuple

from infra.errors import BadInput

SHARED = "/data"
"""Where every run mounts the shared volume (infra/containers/kubernetes.json)."""

LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
SELECTOR = rf"({LABEL}(\.{LABEL})*/)?{NAME}=({NAME})?"
IMAGE = r"([a-z0-9.-]+:\d+/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(?P<tag>:\w[\w.-]{0,127})?(?P<digest>@sha256:[0-9a-f]{64})?"
BUCKET = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^@\s]*)?"


class Installation(NamedTuple):
    """What differs between clusters: the options of `python -m infra kubernetes`."""

    image: str
    worker_image: str
    namespace: str = "bolt"
    store: str = f"{SHARED}/artifacts"
    gpus: int = 1
    memory: str = "128Gi"
    machines: int = 1
    ray_workers: int = 0
    node_selector: tuple[str, ...] = ()
    storage: str = "500Gi"
    storage_class: str | None = None


def check(given: Installation) -> None:
    """Refuse what no cluster would accept, and what would only fail, or go wrong unseen, once runs are under way.

    Raises:
        BadInput: the first option that does not fit; the text names it, what was expected, and what to give instead.
    """
    _check_image("--image", given.image)
    _check_image("--worker-image", given.worker_image)
    _check(
        re.fullmatch(LABEL, given.namespace) is not None,
        f"--namespace {given.namespace}: is no DNS label",
        "at most 63 lower-case letters, digits and dashes, no dash at the ends, e.g. --namespace bolt",
    )
    _check(
        _shared(given.store),
        f"--store {given.store}: pods on different machines do not share it",
        f"s3://BUCKET/PREFIX without credentials, or a folder of the shared volume, e.g. --store {SHARED}/artifacts",
    )
    numbers = (("--gpus", given.gpus, 0), ("--machines", given.machines, 1), ("--ray-workers", given.ray_workers, 0))
    for option, number, least in numbers:
        _check(number >= least, f"{option} {number}: is too small", f"{least} or more, e.g. {option} {max(least, 1)}")
    for option, size in (("--memory", given.memory), ("--storage", given.storage)):
        _check(
            re.fullmatch(r"[1-9][0-9]*[MGT]i", size) is not None,
            f"{option} {size}: is no size",
            f"a number of Mi, Gi or Ti, e.g. {option} 128Gi",
        )
    for label in given.node_selector:
        _check(
            re.fullmatch(SELECTOR, label) is not None,
            f"--node-selector {label}: is no label of a node",
            "KEY=VALUE as `kubectl get nodes --show-labels` shows them, e.g. --node-selector accelerator=h200",
        )
    _check(
        given.storage_class is None or re.fullmatch(rf"{LABEL}(\.{LABEL})*", given.storage_class) is not None,
        f"--storage-class {given.storage_class}: is no name of a storage class",
        "one that `kubectl get storageclass` lists and that allows ReadWriteMany, or leave the option out",
    )


def labels(selector: tuple[str, ...]) -> dict[str, str]:
    """The node selector KEY=VALUE, ... as Kubernetes wants it."""
    return {key: value for key, _, value in (each.partition("=") for each in selector)}


def _check(right: bool, wrong: str, expected: str) -> None:
    if not right:
        raise BadInput(f"{wrong}; expected {expected}")


def _check_image(option: str, image: str) -> None:
    expected = f"REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST, e.g. {option} registry.example.com/bolt:0.2.0"
    found = re.fullmatch(IMAGE, image, re.ASCII)
    _check(found is not None, f"{option} {image}: is no name of an image, which is lower-case", expected)
    tag, digest = (found["tag"], found["digest"]) if found else (None, None)
    _check(bool(tag or digest), f"{option} {image}: has no tag", expected)
    _check(tag != ":latest" or bool(digest), f"{option} {image}: `latest` is another image tomorrow", expected)


def _shared(store: str) -> bool:
    """Whether all pods see the same store there."""
    if store.startswith("s3://"):
        return re.fullmatch(BUCKET, store) is not None
    return store.startswith(f"{SHARED}/") and posixpath.normpath(store) == store.rstrip("/") != SHARED
