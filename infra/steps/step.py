"""What turns a plain function into a cached Prefect task.

A step is planned in the flow's body (its cache key is known before it runs) and its artifact's manifest in the store is
the one record that it is done: Prefect's own result cache is left out, so there are no two books that can disagree.
A step whose artifact is whole ends in the state Cached; otherwise it runs, and not being able to write fails it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed
from prefect.tasks import exponential_backoff
from pydantic import BaseModel

from infra.settings import Settings
from infra.steps.keys import cache_key, code_fingerprint
from infra.store.claims import claimed
from infra.store.manifest import Provenance, Ref
from infra.store.parts import find
from infra.store.store import Store, StoreError

log = logging.getLogger(__name__)


class Plan(BaseModel, frozen=True):
    """An artifact that a step will make: its place `step/key` and what it is made from."""

    step: str
    key: str
    provenance: Provenance


def plan(
    step: str,
    module: str,
    config: BaseModel | Mapping[str, Any],
    inputs: Mapping[str, Ref],
    **ingredients: str,
) -> Plan:
    """Compute a step's cache key from its code, configuration, inputs' digests and other ingredients.

    Raises:
        TypeError, ValueError: as `infra.steps.keys.cache_key`; a key that can't be computed stops the flow.
    """
    plain = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    key = cache_key(step, module=module, config=plain, inputs=inputs, ingredients=ingredients)
    provenance = Provenance(inputs=dict(inputs), config={**plain, **ingredients}, code=code_fingerprint(module))
    return Plan(step=step, key=key, provenance=provenance)


OUTAGES = (httpx.TransportError, ConnectionError, TimeoutError)
"""The network between us and a server."""


def heals(_task: object, _run: object, state: Any) -> bool:
    """Whether trying again may help: the network between us and a server or the store, nothing else."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, StoreError):
        return error.transient
    return isinstance(error, OUTAGES)


def cached(found: Ref) -> Any:
    """The state of a step whose artifact is there."""
    return Completed(name="Cached", message=f"found {found.uri}", data=found)


@functools.lru_cache(maxsize=4)
def _opened(settings: Settings) -> Store:
    """The store, opened and checked once in a process: on S3 that is six requests and a client of its own."""
    return Store.open(settings)


def step(function: Callable[..., Ref]) -> Task[..., Any]:
    """A Prefect task around `function(plan, store, ...)`, which makes the artifact `plan` and returns its reference."""

    def run(plan: Plan, settings: Settings, arguments: dict[str, Any]) -> Any:
        store = _opened(settings)
        if found := find(store, plan.step, plan.key):
            return cached(found)
        with claimed(store, plan.step, plan.key):
            if found := find(store, plan.step, plan.key):  # made by the run that held the claim before
                return cached(found)
            log.info("%s/%s: making it", plan.step, plan.key)
            return function(plan, store, **arguments)

    functools.update_wrapper(run, function)
    del run.__wrapped__  # type: ignore[attr-defined]  # Prefect reads the signature: it must see run's own
    return task(
        name=function.__name__,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=exponential_backoff(5),
        retry_jitter_factor=1,
        retry_condition_fn=heals,
        task_run_name="{plan.step}/{plan.key}",
    )(run)
