"""Turns a plain function into a cached Prefect task. The call is the plan: its arguments make the cache key.

A step is planned in the flow's body, so its key is known before it runs. The manifest of its artifact in the store is
the only record that it is done: Prefect's own result cache is switched off, so that two records cannot disagree. A step
whose artifact is whole ends in the state Cached. Otherwise it runs, and it fails if its artifact cannot be written.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import httpx
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Completed
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import quote
from pydantic import BaseModel

from infra.settings import Settings
from infra.steps.inputs import ReadsFiles, file_digest
from infra.steps.keys import cache_key, code_fingerprint
from infra.store.claims import claimed
from infra.store.manifest import Provenance, Ref
from infra.store.parts import find
from infra.store.store import Store, StoreError

log = logging.getLogger(__name__)

Role = Literal["policy", "reward"]
SERVERS = "servers"
"""The argument that a run passes to every step that has it; it never enters a key."""


class Plan(BaseModel, frozen=True):
    """An artifact that a step will make: its place `step/key`, and what it is made from."""

    step: str
    key: str
    provenance: Provenance


@dataclass(frozen=True)
class Job:
    """One call of a step: the only parameter of its task."""

    plan: Plan
    settings: Settings
    arguments: Mapping[str, Any]

    def submit(
        self, task: Task[..., Any], made_by: Sequence[PrefectFuture[Any]] = (), *, to_its_end: bool = False
    ) -> PrefectFuture[Any]:
        """Submit the call to the flow run's task runner, and with `to_its_end` wait until it has ended.

        `made_by` are the task runs that made or found its inputs.

        Prefect would infer dependencies from the identity of all objects nested in the arguments, even strings. So the
        job is quoted, which stops Prefect from searching it, and the true dependencies are named.
        """
        future = task.submit(quote(self), wait_for=made_by)  # type: ignore[arg-type]
        if to_its_end:
            future.wait()
        return future


@dataclass(frozen=True)
class Step:
    """A function `make(plan, store, *, ...)` as a cached task. It makes the artifact `plan` and returns its reference.

    Attributes:
        make: the plain function.
        task: the Prefect task around it, whose only parameter is a `Job`.
        outside_key: arguments and fields of configurations that change no row, such as `config.in_flight`.
        serves: arguments that are models served to the step, each with the role whose serving options then enter the
            key, such as `{"reward_model": "reward"}`.
        one_by_one: whether its shards run one after the other where there is no cluster: they compute in Python, where
            threads share a core and only add up their memory.
    """

    make: Callable[..., Ref]
    task: Task[..., Any]
    outside_key: Collection[str]
    serves: Mapping[str, Role]
    one_by_one: bool = False

    @property
    def takes_servers(self) -> bool:
        """Whether the function has an argument `servers`."""
        return SERVERS in inspect.signature(self.make).parameters

    def plan(self, name: str, arguments: Mapping[str, Any]) -> Plan:
        """The plan of one call: its cache key and provenance.

        Every reference among the arguments, also in lists, is an input. Everything else is configuration: frozen
        Pydantic models and plain JSON values. A path counts by the name and text of its file, not by its folder.
        A configuration that reads files in other ways has a method `contents()` that returns their digest.

        Args:
            name: the name of the step, which is also the folder of its artifact.
            arguments: the function's arguments, without `plan` and `store`.

        Raises:
            TypeError: an argument is missing, unknown, or has no exact JSON form.
            ValueError: a number is not finite.
            CodeChangedError: a module of the project has changed since this process began.
            BadInput: a file that a configuration names cannot be read.
        """
        bound = inspect.signature(self.make).bind(None, None, **arguments)
        bound.apply_defaults()
        given, inputs = list(bound.arguments.items())[2:], dict[str, Ref]()
        counted = {key: value for key, value in given if key not in {*self.outside_key, SERVERS}}
        plain = {key: _plain(value, key, inputs, self.outside_key) for key, value in counted.items()}
        config = {key: value for key, value in plain.items() if value is not _INPUT}
        ingredients = {
            f"engine of {key}": arguments[SERVERS].engine(role)
            for key, role in self.serves.items()
            if bound.arguments[key] is not None
        }
        code = code_fingerprint(self.make.__module__)
        key = cache_key(name, code=code, config=config, inputs=inputs, ingredients=ingredients)
        provenance = Provenance(inputs=inputs, config={**config, **ingredients}, code=code)
        return Plan(step=name, key=key, provenance=provenance)


_INPUT = object()
"""Stands for a reference, or a list of references: an input, not configuration."""


def _plain(value: Any, where: str, inputs: dict[str, Ref], outside: Collection[str], *, covered: bool = False) -> Any:
    """The JSON form of an argument. The references in it are added to `inputs` under their places.

    `covered`: the digest of the configuration that contains it already includes the files that its paths name.
    """
    if isinstance(value, Ref):
        inputs[where] = value
        return _INPUT
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} has no JSON form")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return value.name if covered else file_digest(value, where)
    if isinstance(value, BaseModel):
        if not value.model_config.get("frozen"):
            raise TypeError(f"{where}: {type(value).__name__} is mutable: a step's configuration must be frozen")
        files = {"contents": value.contents()} if isinstance(value, ReadsFiles) else {}
        places = {name: f"{where}.{name}" for name in type(value).model_fields if f"{where}.{name}" not in outside}
        fields = {
            name: _plain(getattr(value, name), place, inputs, outside, covered=bool(files))
            for name, place in places.items()
        }
        return {**fields, **files}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        items = [
            _plain(item, f"{where}/{number}", inputs, outside, covered=covered) for number, item in enumerate(value)
        ]
        return _INPUT if _INPUT in items else items
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        named = {
            name: _plain(item, f"{where}.{name}", inputs, outside, covered=covered) for name, item in value.items()
        }
        return _INPUT if _INPUT in named.values() else named
    raise TypeError(
        f"{where}: {type(value).__name__} has no exact JSON form: declare it in the step's `outside_key` if it changes "
        "no row"
    )


OUTAGES = (httpx.TransportError, ConnectionError, TimeoutError)
"""Failures of the network between us and a server."""


def is_transient(_task: object, _run: object, state: Any) -> bool:
    """Whether a failed step may succeed on retry: the network to a server or to the store failed, nothing else."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, StoreError):
        return error.transient
    return isinstance(error, OUTAGES)


def cached(found: Ref) -> Any:
    """The state of a step whose artifact exists."""
    return Completed(name="Cached", message=f"found {found.uri}", data=found)


@functools.lru_cache(maxsize=4)
def _opened(settings: Settings) -> Store:
    """The store, opened and checked once per process: on S3 this takes six requests and a new client."""
    return Store.open(settings)


def _task(function: Callable[..., Ref]) -> Task[..., Any]:
    """The Prefect task that finds the artifact, or makes it while holding the claim to it."""

    def run(job: Job) -> Any:
        plan, store = job.plan, _opened(job.settings)
        if found := find(store, plan.step, plan.key):
            return cached(found)
        with claimed(store, plan.step, plan.key):
            if found := find(store, plan.step, plan.key):  # made by the previous holder of the claim
                return cached(found)
            log.info("%s/%s: making it", plan.step, plan.key)
            return function(plan, store, **job.arguments)

    functools.update_wrapper(run, function)
    del run.__wrapped__  # type: ignore[attr-defined]  # Prefect reads the signature: it must see run's own
    return task(
        name=function.__name__,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=exponential_backoff(5),
        retry_jitter_factor=1,
        retry_condition_fn=is_transient,
        task_run_name="{job.plan.step}/{job.plan.key}",
    )(run)


@overload
def step(function: Callable[..., Ref], /) -> Step: ...
@overload
def step(
    *, outside_key: Collection[str] = (), serves: Mapping[str, Role] = {}, one_by_one: bool = False
) -> Callable[[Callable[..., Ref]], Step]: ...
def step(
    function: Callable[..., Ref] | None = None,
    /,
    *,
    outside_key: Collection[str] = (),
    serves: Mapping[str, Role] = {},
    one_by_one: bool = False,
) -> Step | Callable[[Callable[..., Ref]], Step]:
    """Make a `Step` of a function `(plan, store, *, ...)`: `@step`, or `@step(outside_key=..., ...)`.

    Arguments that change no row are declared here: see `Step`.
    """

    def made(function: Callable[..., Ref]) -> Step:
        return Step(function, _task(function), frozenset(outside_key), dict(serves), one_by_one)

    return made(function) if function is not None else made
