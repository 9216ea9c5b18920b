"""What the machines of a training tell each other through files in the shared folder.

The flow's machine, node 0, offers a training in `nodes/training.json`; the agent of node N answers in
`nodes/node-N.json`. Beside each lies a file that its writer rewrites twice a second while it lives. No clock is
compared: a reader sees only that such a beat changes. Nothing secret is written here.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self, TypeVar
from uuid import uuid4

from pydantic import BaseModel, Field, ValidationError

from infra.errors import BadInput
from infra.processes.identity import began, is_gone, machine
from infra.settings import PACKAGES, PROJECT_ROOT

BEAT_S = 0.5
FOLDER = "nodes"
LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "deepspeed", "accelerate", "datasets", "liger-kernel")
"""What must be of one version on all machines: the ranks exchange tensors, and each prepares its part of the rows."""

Facts = dict[str, str]
"""What must be equal on all machines of a training: the version of each thing, by its name in messages."""


def facts_here(root: Path = PROJECT_ROOT, libraries: Sequence[str] = LIBRARIES) -> Facts:
    """Those of this machine, read from its disk now: Python, the project's packages, and `libraries`."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        digest = hashlib.sha256()
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
        found[f"the project's code ({package})"] = digest.hexdigest()[:12]
    return found | {name: _version(name) for name in libraries}


def difference(one: Facts, other: Facts) -> str:
    """What differs, in words, that of `one` first; "" if nothing does."""
    pairs = [(name, one.get(name, "none"), other.get(name, "none")) for name in one | other]
    return ", ".join(f"{name}: {mine} and not {theirs}" for name, mine, theirs in pairs if mine != theirs)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


class Who(BaseModel, frozen=True):
    """A process, told apart from every other by `session`."""

    host: str
    machine: str
    pid: int
    began: int | None
    session: str

    @classmethod
    def me(cls) -> Self:
        """This process."""
        pid = os.getpid()
        return cls(host=socket.gethostname(), machine=machine(), pid=pid, began=began(pid), session=uuid4().hex)

    def is_gone(self) -> bool:
        """Whether it is known to be gone, which can be said of processes on this machine only."""
        return is_gone(self.machine, self.pid, self.began)


class Offer(BaseModel, frozen=True, extra="forbid"):
    """A training that node 0 offers to the agents."""

    by: Who
    hosts: tuple[str, ...]
    lost_after_s: float
    facts: Facts
    module: str = Field(description="The trainer's module, for `python -m`.")
    config: Path = Field(description="The file of its configuration.")
    log: Path = Field(description="Node 0's log; the others' logs lie beside it (see `node_log`).")
    ranks: int = Field(description="Number of training processes on each machine.")
    paths: tuple[Path, ...] = Field(description="Files and folders that every machine must see.")
    environment: dict[str, str] = Field(description="Variables of the network libraries, for machines without them.")
    port: int | None = Field(None, description="Port on the first host that the ranks meet at; null: not begun.")
    sessions: dict[int, str] = Field({}, description="The agents that take part, by node, once it has begun.")


class Sign(BaseModel, frozen=True, extra="forbid"):
    """What an agent says of itself."""

    by: Who
    node: int
    facts: Facts
    joined: str | None = Field(None, description="Session of the offer that it has taken up.")
    address: str = Field("", description="Its own address on the way to the first host.")
    refused: str = Field("", description="Why it does not take part in `joined`.")
    status: int | None = Field(None, description="Exit status of its ranks in `joined`.")
    left: bool = Field(False, description="It was told to end.")


def offer_path(folder: Path) -> Path:
    """The offer's file in the shared folder."""
    return folder / FOLDER / "training.json"


def sign_path(folder: Path, node: int) -> Path:
    """The file of a node's agent in the shared folder."""
    return folder / FOLDER / f"node-{node}.json"


def node_log(log_path: Path, node: int) -> Path:
    """The log of a node's ranks, beside that of node 0: `train.node1.log` beside `train.log`."""
    return log_path if node == 0 else log_path.with_suffix(f".node{node}{log_path.suffix}")


def write(path: Path, said: BaseModel) -> None:
    """Write a file of the shared folder, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(said.model_dump_json(indent=1))
    unfinished.replace(path)


Said = TypeVar("Said", bound=BaseModel)


def read(path: Path, kind: type[Said]) -> Said | None:
    """A file of the shared folder; None if there is none.

    Raises:
        BadInput: it was written by another version of this code.
        OSError: the folder cannot be read.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise BadInput(f"{path} was not written by this version of the code: use one version on all hosts") from error


def beat(path: Path, count: int) -> None:
    """Show that the writer of `path` lives. The file is written in place, which needs no room on a full disk."""
    beats = path.with_suffix(".beat")
    descriptor = os.open(beats, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, b"%012d\n" % count, 0)
    finally:
        os.close(descriptor)


class Pulse:
    """Watches whether the writer of a file lives, by its beat."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path.with_suffix(".beat"), clock
        self._seen = b""
        self._seen = self._read()
        self._changed: float | None = None

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError:  # no news
            return self._seen

    def last(self) -> float | None:
        """When the beat changed last, by this process's clock; None if it has not changed since it is watched."""
        if (found := self._read()) != self._seen:
            self._seen, self._changed = found, self._clock()
        return self._changed

    def beats(self, within_s: float) -> bool:
        """Whether it changed within the last seconds. Of one that was not yet watched so long, it must have changed."""
        last = self.last()
        return last is not None and self._clock() - last <= within_s


def check_folder(folder: Path) -> None:
    """Raise `BadInput` if the shared folder cannot be written."""
    path = folder / FOLDER / f"probe-{uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
        path.unlink()
    except OSError as error:
        raise BadInput(f"shared folder {folder} on {socket.gethostname()}: {error.strerror}") from error
